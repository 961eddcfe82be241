"""Load a model once, as a TransformerLens bridge for hooks and as a fast plain twin for generation.

>>> from emolab import load_model
>>> from emolab.models import encode, render_prompts
>>> model = load_model("mini")
>>> batch = encode(model, render_prompts(model, ["Tell me about the park."], "joy"))
>>> logits, cache = model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from emolab.errors import EmolabError
from emolab.prompts import Batch, check_context, encode, instruction, plan_batches, render_prompts

__all__ = [
    "SITES", "Batch", "Model", "check_context", "encode", "hf_modules", "instruction", "load_model", "plan_batches",
    "render_prompts", "site_hooks",
]  # fmt: skip

MINI = Path(__file__).parent / "mini" / "weights"
SITES = ("resid", "attn", "mlp", "head")
_HOOKS = {"resid": "hook_out", "attn": "hook_attn_out", "mlp": "hook_mlp_out", "head": "attn.o.hook_in"}


@dataclass(eq=False)
class Model:
    """A causal language model, twice over one copy of its weights; made by `load_model`.

    bridge      TransformerBridge, raw (no compatibility mode): for every kind of hook and cache. Attributes that Model
                itself lacks are looked up there, so `model.cfg`, `model.run_with_cache(...)`, `model.blocks` work as in
                TransformerLens.
    hf          the plain Hugging Face model, for fast generation. Of a ready bridge: `bridge.original_model`, the same
                object.
    tokenizer   left padding, a pad token, its chat template kept.
    fingerprint 16 hex digits that tell models apart whatever their dtype; saved with vectors.
    """

    name: str
    source: str
    revision: str | None
    bridge: Any
    hf: Any
    tokenizer: Any
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or _fingerprint(self.hf)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "bridge" not in self.__dict__:  # copy and pickle ask before __init__ has run
            raise AttributeError(name)
        return getattr(self.bridge, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.bridge(*args, **kwargs)

    def __repr__(self) -> str:
        shape = f"n_layers={self.n_layers}, n_heads={self.n_heads}, d_model={self.d_model}"
        return (
            f"Model({self.name!r}, {shape}, dtype={self.dtype}, device={self.device}, fingerprint={self.fingerprint})"
        )

    @property
    def n_layers(self) -> int:
        return self.bridge.cfg.n_layers

    @property
    def n_heads(self) -> int:
        return self.bridge.cfg.n_heads

    @property
    def d_model(self) -> int:
        return self.bridge.cfg.d_model

    @property
    def d_head(self) -> int:
        return self.bridge.cfg.d_head

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def n_ctx(self) -> int | None:
        """Longest sequence in tokens, None where the config names none."""
        return getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)

    @property
    def eos_ids(self) -> list[int]:
        """Ids that end an answer: generation_config's (with the end of a turn), else config's, else the tokenizer's."""
        for owner in (self.hf.generation_config, self.hf.config.get_text_config(), self.tokenizer):
            ids = getattr(owner, "eos_token_id", None)
            if ids is not None:
                return [int(i) for i in ids] if isinstance(ids, list | tuple) else [int(ids)]
        return []

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer by itself puts BOS before a text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a").input_ids[:1] == [bos]

    @cached_property
    def _hook_names(self) -> dict[str, str]:  # every hook name, aliases too, to its canonical name
        return {name: point.name for name, point in self.bridge.hook_dict.items()}


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a model for everything else in emolab.

    >>> model = emolab.load_model("mini")                              # bundled
    >>> model = emolab.load_model("Qwen/Qwen2.5-0.5B-Instruct", dtype="bfloat16")
    >>> model = emolab.load_model("path/to/a/directory")
    >>> model = emolab.load_model((hf_model, hf_tokenizer))            # in memory; the objects are left as they are
    >>> model = emolab.load_model(bridge)                              # a TransformerBridge; tokenizer= if it has none

    device None is CUDA where there is one, else CPU. A pair, a bridge or a Model keeps its own device and dtype.
    Raises EmolabError when nothing can be loaded under that name, when the architecture is unknown to TransformerLens,
    or when a bridge is in compatibility mode (its weights are processed, so its vectors are not those of the model).
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path):
        return _from_pretrained(str(model), tokenizer, device, dtype, revision, trust_remote_code)
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module):
        hf = model[0].eval()
        name = hf.config.name_or_path or type(hf).__name__
        return _bridged(name, name, revision, hf, _own_tokenizer(tokenizer or model[1]))
    if type(model).__name__ == "TransformerBridge":
        if model.compatibility_mode:
            raise EmolabError("this bridge is in compatibility mode (processed weights); pass a raw TransformerBridge")
        tokenizer = tokenizer or model.tokenizer
        if tokenizer is None:
            raise EmolabError("this TransformerBridge has no tokenizer; pass load_model(bridge, tokenizer=...)")
        hf = model.original_model.eval()
        name = hf.config.name_or_path or model.cfg.model_name
        return Model(name, name, revision, model, hf, _own_tokenizer(tokenizer))
    raise EmolabError(
        f"cannot load a model from {type(model).__name__}; expected 'mini', a hub id, a local directory, "
        "a pair (hf_model, tokenizer) or a TransformerBridge"
    )


def _from_pretrained(source, tokenizer, device, dtype, revision, trust_remote_code) -> Model:
    path = MINI if source == "mini" else Path(source).expanduser()
    place, name = (str(path), path.name) if path.is_dir() else (source, source)
    if source == "mini":
        place, name = str(MINI), "mini"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(dtype, torch.dtype):
        raise EmolabError("unknown dtype; expected 'float32', 'bfloat16', 'float16' or a torch.dtype")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        with quiet():
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(place, **options)
            hf = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise EmolabError(
            f"no model {source!r}: neither 'mini', nor a directory with a Hugging Face model, nor a hub id reachable "
            f"from here ({str(error).splitlines()[0]})"
        ) from error
    return _bridged(name, source, revision, hf.to(device).eval().requires_grad_(False), _own_tokenizer(tokenizer))


def _bridged(name: str, source: str, revision: str | None, hf: Any, tokenizer: Any) -> Model:
    """Bridge a twin of `hf`: own modules, the very same weight tensors, so that `hf` keeps its fast plain forward."""
    twin = copy.deepcopy(hf, {id(t): t for t in [*hf.parameters(), *hf.buffers()]})
    twin.config.architectures = twin.config.architectures or [type(hf).__name__]
    theirs = copy.deepcopy(tokenizer)
    # With this flag TransformerLens keeps the object; else it reloads a tokenizer by name, without our chat template.
    theirs.init_kwargs.update(add_bos_token=True, name_or_path=theirs.init_kwargs.get("name_or_path", name))
    with quiet():
        from transformer_lens.model_bridge import TransformerBridge

        param = next(hf.parameters())
        try:
            bridge = TransformerBridge.boot_transformers(
                hf.config.name_or_path or name,
                hf_model=twin,
                tokenizer=theirs,
                device=str(param.device),
                dtype=param.dtype,
            )
        except ValueError as error:
            raise EmolabError(f"TransformerLens cannot bridge {name!r} ({type(hf).__name__}): {error}") from error
    return Model(name, source, revision, bridge, hf, tokenizer)


def _own_tokenizer(tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
        if tokenizer.pad_token_id is None:
            raise EmolabError("the tokenizer has neither a pad, an EOS nor a BOS token; set tokenizer.pad_token first")
    return tokenizer


@contextlib.contextmanager
def quiet():
    """No loading bars; and what importing TransformerLens does to the transformers logger and to warnings is undone."""
    logger, bars = logging.getLogger("transformers"), hf_logging.is_progress_bar_enabled()
    level = logger.level
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logger.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


def _fingerprint(hf: Any) -> str:
    """Hash of shape and content, the same for a plain model and its bridged form, and for float32 and bfloat16.

    Bridged models rename parameters and add split copies of fused matrices: so names and copies stay out.
    """
    config = hf.config.get_text_config()
    keys = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    names = {name.replace("._original_component", ""): p for name, p in hf.named_parameters()}
    fused = {".qkv.": (".q.", ".k.", ".v."), ".gate_up_proj.": (".gate.", ".in.")}
    split = {n.replace(whole, part) for whole, parts in fused.items() for n in names if whole in n for part in parts}
    digests = []
    for name, p in names.items():
        if name not in split:
            head = p.detach().flatten()[:64].to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes()
            digests.append(str(tuple(p.shape)).encode() + head)
    text = repr([getattr(config, k, None) for k in keys]).encode() + b"".join(sorted(digests))
    return hashlib.sha256(text).hexdigest()[:16]


def site_hooks(model: Model, site: str) -> list[str]:
    """Canonical TransformerLens hook name of a site, one per layer.

    >>> site_hooks(model, "attn")[0]
    'blocks.0.attn.hook_out'

    attn and mlp are what a block adds to the residual stream: on models with a norm after attention that is
    `ln1_post.hook_out`.
    """
    if site not in _HOOKS:
        raise EmolabError(f"unknown site {site!r}; expected one of {', '.join(SITES)}")
    names = [f"blocks.{layer}.{_HOOKS[site]}" for layer in range(model.n_layers)]
    missing = [n for n in names if n not in model._hook_names]
    if missing:
        raise EmolabError(f"{model.name!r} has no hook point {missing[0]}; its architecture offers no site {site!r}")
    return [model._hook_names[n] for n in names]


def hf_modules(model: Model, site: str) -> list[tuple[nn.Module, str]] | None:
    """The same points as plain modules of `model.hf`: (module, "output" or "input") per layer.

    None where there are none: the bridge is the user's own (then `hf` is its inside), or the block has no such module
    (Granite scales the attention output by itself). Callers then hook the bridge.
    """
    names = site_hooks(model, site)
    if model.hf is model.bridge.original_model:
        return None
    found = []
    for layer, name in enumerate(names):
        *parts, end = name.split(".")[2:]
        component, path = model.bridge.blocks[layer], model.bridge.blocks[layer].name
        for part in parts:
            component = getattr(component, part)
            path = f"{path}.{component.name}"
        if end not in ("hook_in", "hook_out"):
            return None
        try:
            found.append((model.hf.get_submodule(path), {"hook_in": "input", "hook_out": "output"}[end]))
        except AttributeError:
            return None
    return found
