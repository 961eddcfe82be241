"""Load a model once, as a TransformerLens bridge for hooks and as a fast plain twin for generation and extraction.

>>> from emolab import load_model
>>> from emolab.models import encode, render_prompts
>>> model = load_model("smollm2")
>>> batch = encode(model, render_prompts(model, ["Tell me about the park."], "joy"))
>>> logits, cache = model.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as hf_logging

from emolab.errors import EmolabError, shown
from emolab.fetch import DEFAULT, MODELS, find
from emolab.pretrained import from_pretrained
from emolab.prompts import Batch, check_context, encode, instruction, plan_batches, render_prompts, turn_end
from emolab.sites import CHECKED, SITES, hf_modules, site_hooks

__all__ = [
    "SITES", "Batch", "Model", "check_context", "encode", "hf_modules", "instruction", "load_model", "plan_batches",
    "render_prompts", "site_hooks",
]  # fmt: skip


@dataclass(eq=False)
class Model:
    """A causal language model, twice over one copy of its weights; made by `load_model`.

    bridge      TransformerBridge, raw (no compatibility mode): for every kind of hook and cache. Attributes that Model
                itself lacks are looked up there, so `model.cfg`, `model.run_with_cache(...)`, `model.blocks` work as in
                TransformerLens.
    hf          the plain Hugging Face model, for fast generation and extraction. Of a ready bridge: the same object as
                `bridge.original_model`.
    tokenizer   left padding, a pad token where it has any to use, its chat template kept.
    fingerprint 16 hex digits that tell models apart whatever their dtype; saved with vectors.
    recipe      what `load_model` needs beside `source` to read it again elsewhere; None for a model given as an object.
    """

    name: str
    source: str
    revision: str | None
    bridge: Any
    hf: Any
    tokenizer: Any
    fingerprint: str = ""
    recipe: dict[str, Any] | None = None
    _bridge_checked: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        _need_decoder(self.name, self.hf)
        self.fingerprint = self.fingerprint or _fingerprint(self.hf)
        for model in {id(m): m for m in (self.hf, self.bridge.original_model)}.values():
            _keep_every_token(model)
            _read_head_whole(model)
        _keep_dtype(self.bridge, self.dtype)

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
        """Where token ids belong: the device of the embedding, of a model over several devices too."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def n_ctx(self) -> int | None:
        """Longest sequence in tokens, None where the config names none."""
        return getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)

    @property
    def eos_ids(self) -> list[int]:
        """Ids that end an answer: all that generation_config, config or tokenizer name, and what the template says.

        Each knows of ends that the others lack: of the text, of a turn.
        """
        owners = (self.hf.generation_config, self.hf.config.get_text_config(), self.tokenizer)
        named = [getattr(owner, "eos_token_id", None) for owner in owners] + [self._turn_end]
        ids = [i for found in named for i in (found if isinstance(found, list | tuple) else [found]) if i is not None]
        return list(dict.fromkeys(map(int, ids)))

    @cached_property
    def _turn_end(self) -> int | None:
        return turn_end(self.tokenizer)

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """What the tokenizer reads as one token with a meaning of its own, wherever it stands: roles, ends of turns."""
        return tuple(str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer by itself puts BOS before a text."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a").input_ids[:1] == [bos]

    @cached_property
    def _hook_names(self) -> dict[str, str]:  # every hook name, aliases too, to its canonical name
        return {name: point.name for name, point in self.bridge.hook_dict.items()}


def load_model(
    model: Any = DEFAULT,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> Model:
    """Load a model for everything else in emolab.

    >>> model = emolab.load_model()                                    # "smollm2", the default: see emolab.fetch
    >>> model = emolab.load_model("Qwen/Qwen2.5-0.5B-Instruct", dtype="bfloat16")      # doctest: +SKIP
    >>> model = emolab.load_model("path/to/a/directory")
    >>> model = emolab.load_model("org/large", device_map="auto")      # over several GPUs # doctest: +SKIP
    >>> model = emolab.load_model((hf_model, hf_tokenizer))            # in memory; the objects are left as they are
    >>> model = emolab.load_model(bridge)                              # a TransformerBridge; tokenizer= if it has none

    device None is CUDA where there is one, else CPU. device_map instead spreads the layers over devices (accelerate);
    every weight must lie in memory, none on disk. A pair, a bridge or a Model keeps its own device and dtype. A
    quantised model is read where its packages are installed, or given as a pair; it has no site "head".
    dtype "auto" is that of the checkpoint, but on a CPU float32 in place of float16, and in place of bfloat16 where the
    processor has no instructions for it (`emolab.pretrained.fast_bfloat16`); float32 for a GGUF file and for smollm2.
    chat_template replaces the tokenizer's own, or names one of several that it has.
    revision is a branch, tag or commit of the hub; `Model.revision` is the commit, where known.

    Warns, in one line, of an architecture that docs/families.md does not list, with what batches of it do.

    Raises EmolabError, in one line, when nothing can be loaded under that name, when the architecture is unknown to
    TransformerLens, or when a bridge is in compatibility mode (processed weights: its vectors are not the model's).
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path):
        source, given = str(model), tokenizer
        place = str(find(source)) if source in MODELS else source
        with quiet():
            hf, tokenizer, revision = from_pretrained(
                place,
                tokenizer=tokenizer,
                device=device,
                device_map=device_map,
                dtype=dtype,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
        folder = Path(source).expanduser()
        name = folder.resolve().name if source not in MODELS and folder.exists() else source
        own = _own_tokenizer(tokenizer, chat_template)
        loaded = _bridged(name, source, revision, hf.eval().requires_grad_(False), own)
        if given is None:
            # What "auto" came to: a worker's processor might come to something else.
            kind = str(loaded.dtype).removeprefix("torch.") if dtype == "auto" else dtype
            loaded.recipe = {"device_map": device_map, "dtype": kind, "trust_remote_code": trust_remote_code}
            loaded.recipe["chat_template"] = chat_template
        return loaded
    if type(model).__name__ == "TransformerBridge":
        if model.compatibility_mode:
            raise EmolabError("this bridge is in compatibility mode (processed weights); pass a raw TransformerBridge")
        tokenizer = tokenizer or model.tokenizer
        if tokenizer is None:
            raise EmolabError("this TransformerBridge has no tokenizer; pass load_model(bridge, tokenizer=...)")
        hf = model.original_model.eval()
        name = hf.config.name_or_path or model.cfg.model_name
        return _noted(Model(name, name, _commit(hf, revision), model, hf, _own_tokenizer(tokenizer, chat_template)))
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module):
        hf, own = model
        name = hf.config.name_or_path or type(hf).__name__
        return _bridged(name, name, revision, hf.eval(), _own_tokenizer(tokenizer or own, chat_template))
    raise EmolabError(
        f"cannot load a model from {type(model).__name__}; expected 'smollm2', a hub id, a directory, a GGUF file, "
        "a pair (hf_model, tokenizer) or a TransformerBridge"
    )


def _bridged(name: str, source: str, revision: str | None, hf: Any, tokenizer: Any) -> Model:
    """Bridge a twin of `hf`: own modules, the very same weight tensors, so that `hf` keeps its fast plain forward."""
    if any(p.is_meta for p in hf.parameters()):
        raise EmolabError(
            f"parts of {name!r} lie on disk or were moved off the GPU (device_map); emolab reads and hooks every "
            "weight: use more GPUs, all CPU, or a smaller dtype"
        )
    twin = copy.deepcopy(hf, {id(t): t for t in [*hf.parameters(), *hf.buffers()]})
    theirs = copy.deepcopy(tokenizer)
    # With this flag TransformerLens keeps the object; else it reloads a tokenizer by name, without our chat template.
    theirs.init_kwargs.update(add_bos_token=True, name_or_path=theirs.init_kwargs.get("name_or_path", name))
    with quiet():
        # Not boot_transformers: for models that also see, it looks for a processor on the hub and, where torchvision is
        # missing, installs it with pip, which may replace torch.
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        known = [c.__name__ for c in type(hf).__mro__ if c.__name__ in SUPPORTED_ARCHITECTURES]
        if not known:
            merge = "; merge its adapter first: model.merge_and_unload()" if hasattr(hf, "merge_and_unload") else ""
            raise EmolabError(
                f"TransformerLens has no adapter for the architecture of {name!r}, {type(hf).__name__}{merge}"
            )
        try:
            bridge = build_bridge_from_module(
                twin, known[0], hf_config=copy.deepcopy(hf.config), tokenizer=theirs, model_name=name
            )
        except Exception as error:  # adapters fail in their own ways on what they were not written for
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise EmolabError(f"TransformerLens cannot bridge {name!r} ({type(hf).__name__}): {why}") from error
    bridge.cfg.n_devices = len({p.device for p in hf.parameters()})  # so that its own loops follow the layers
    return _noted(Model(name, source, _commit(hf, revision), bridge, hf, tokenizer))


def _noted(model: Model) -> Model:
    """The model; one line of warning where its architecture is not a checked one."""
    if not any(kind.__name__ in CHECKED for kind in type(model.hf).__mro__):
        from emolab.selfcheck import warn_if_new

        warn_if_new(model)
    return model


def _need_decoder(name: str, hf: Any) -> None:
    """EmolabError for an encoder: BERT and its kin load as causal models and read what they have not written yet."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = getattr(hf.config, "model_type", None)
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(hf.config, "is_decoder", False):
        raise EmolabError(f"{name!r} is an encoder ({kind}), which reads both ways; expected one that continues text")


def _commit(hf: Any, revision: str | None) -> str | None:
    return getattr(hf.config, "_commit_hash", None) or revision


def _keep_every_token(hf: Any) -> None:
    """Gemma 4's upper layers see only the tokens whose logits are wanted, one in `generate`; hooks need them all."""
    for module in hf.modules():
        if hasattr(module, "_maybe_slice_kv_shared_inputs"):
            module._maybe_slice_kv_shared_inputs = lambda states, extra, positions, masks, *_, **__: (
                states, extra, positions, masks,
            )  # fmt: skip


def contiguous_head(module: Any, args: Any) -> Any:
    """Of the output head: its input without gaps. A slice of the last tokens (`logits_to_keep`) has gaps between rows,
    and where the weight wants no gradient, matmul then copies the whole weight once for each row.
    """
    return (args[0].contiguous(), *args[1:]) if args else None


def _read_head_whole(hf: Any) -> None:
    head = hf.get_output_embeddings()
    if head is not None and contiguous_head not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(contiguous_head)


def _keep_dtype(bridge: Any, dtype: torch.dtype) -> None:
    """Rotation in float32 (OLMo 2) must hand back the model's dtype, as it does outside TransformerLens."""
    for block in bridge.blocks:
        points = getattr(block, "attn", block)._modules
        for name in ("hook_rot_q", "hook_rot_k"):
            if dtype != torch.float32 and name in points:
                points[name].register_forward_hook(lambda module, args, x: x.to(dtype))


def _own_tokenizer(tokenizer: Any, chat_template: str | None) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = _template(tokenizer.chat_template, chat_template)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:  # where there is none of these, `encode` pads with id 0, masked as always
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    return tokenizer


def _template(own: str | dict[str, str] | None, chosen: str | None) -> str | None:
    """The one chat template that counts: some tokenizers have several, by name."""
    named = own if isinstance(own, dict) else {}
    if chosen is None and isinstance(own, str | None):
        return own
    if (chosen or "default") in named:
        return named[chosen or "default"]
    if chosen is not None and "{" in chosen:
        return chosen
    has = f"has the chat templates {', '.join(named)}" if named else "has no chat templates by name"
    raise EmolabError(
        f"this tokenizer {has}, and chat_template is {shown(chosen)}; expected "
        f"{f'chat_template={next(iter(named))!r}, another of these names' if named else 'None'}, or a template's text"
    )


@contextlib.contextmanager
def quiet():
    """No loading bars or reports; what importing TransformerLens does to the logger and to warnings is undone."""
    logger, bars = logging.getLogger("transformers"), hf_logging.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
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
