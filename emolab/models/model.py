"""A language model as emolab holds it: a TransformerLens bridge for hooks and a plain twin over the same weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from emolab import __version__
from emolab.base.errors import EmolabError
from emolab.models.templates import turn_ends

_SAMPLE = 4096  # values of each parameter, from all over it, that tell models apart


@dataclass(eq=False)
class Model:
    """A causal language model, twice over one copy of its weights; made by `load_model`.

    >>> model.n_layers, model.d_model
    (30, 576)
    >>> logits, cache = model.run_with_cache(tokens)                        # whatever TransformerLens' bridge can do

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
    digest: str = field(default="", init=False, repr=False)  # of the weights as they were when it was loaded
    _bridge_checked: bool = field(default=False, init=False, repr=False)
    _pads_inside: bool | None = field(default=None, init=False, repr=False)  # `sharing.begin`; None: not tried yet

    def __post_init__(self) -> None:
        _need_decoder(self.name, self.hf)
        self.fingerprint = self.fingerprint or fingerprint_of(self.hf)
        self.digest = weights_digest(self.hf)
        for model in {id(m): m for m in (self.hf, self.bridge.original_model)}.values():
            _keep_every_token(model)
            _read_head_whole(model)
        _keep_dtype(self.bridge, self.dtype)
        _drop_empty_rotation(self.bridge)

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
        config = self.hf.config
        owners = (self.hf.generation_config, config, config.get_text_config(), self.tokenizer)
        named = [getattr(owner, "eos_token_id", None) for owner in owners] + self._turn_ends
        every = [i for ids in named for i in (ids if isinstance(ids, list | tuple) else [ids]) if i is not None]
        return list(dict.fromkeys(map(int, every)))

    @cached_property
    def _turn_ends(self) -> list[int]:
        return turn_ends(self.tokenizer)

    @cached_property
    def control_tokens(self) -> re.Pattern[str]:
        """Finds what the tokenizer reads as one token with a meaning of its own: roles, ends of turns, BOS."""
        tokens = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

    @cached_property
    def start_ids(self) -> tuple[int, ...]:
        """What the tokenizer by itself puts before a text: BOS, nothing, or what else its model begins with."""
        whole, bare = self.tokenizer("a").input_ids, self.tokenizer("a", add_special_tokens=False).input_ids
        return tuple(whole[: next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)])

    @cached_property
    def start(self) -> str:
        """`start_ids` as a text."""
        return "".join(self.tokenizer.convert_ids_to_tokens(list(self.start_ids)))

    @cached_property
    def _hook_names(self) -> dict[str, str]:  # every hook name, aliases too, to its canonical name
        return {name: point.name for name, point in self.bridge.hook_dict.items()}


def provenance(model: Model) -> dict:
    """What tells whether something measured on `model` fits another model: its identity, shape, precision, versions."""
    from importlib.metadata import version

    return {
        "model": model.name,
        "source": model.source,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "compat": False,  # TransformerLens' compatibility mode would change the activations of LayerNorm models
        "tl_version": version("transformer-lens"),
        "transformers_version": version("transformers"),
        "torch_version": version("torch"),
        "emolab_version": __version__,
    }


def _need_decoder(name: str, hf: Any) -> None:
    """EmolabError for an encoder: BERT and its kin load as causal models and read what they have not written yet."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = getattr(hf.config, "model_type", None)
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(hf.config, "is_decoder", False):
        raise EmolabError(f"{name!r} is an encoder ({kind}), which reads both ways; expected one that continues text")


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
    """What is computed in float32 inside attention (OLMo's rotation, CodeGen's scores) must come back in the model's
    dtype, as it does outside TransformerLens.
    """
    if dtype == torch.float32:
        return
    for block in getattr(bridge, "blocks", ()):
        attn = getattr(block, "attn", block)
        points = [getattr(attn, name, None) for name in ("hook_rot_q", "hook_rot_k")]
        for point in [*points, getattr(getattr(attn, "o", None), "hook_in", None)]:
            if point is not None:
                point.register_forward_hook(lambda module, args, x: x.to(dtype))


def _drop_empty_rotation(bridge: Any) -> None:
    """A model without rotation (Granite 4 H) must not be given TransformerLens' empty shell of one."""
    for module in bridge.original_model.modules():
        shell = module._modules.get("rotary_emb")
        if shell is not None and getattr(shell, "original_component", shell) is None:
            module._modules["rotary_emb"] = None
            for attn in (getattr(block, "attn", None) for block in bridge.blocks):
                if attn is not None:
                    attn.config.positional_embedding_type = "none"  # each has a copy; else it warns in every pass


def fingerprint_of(hf: Any) -> str:
    """Hash of shapes and of the signs of weights: the same for a plain model and its bridged form, in every dtype.

    Signs alone are the same however a checkpoint is rounded: twice (float32 to float16 to bfloat16) is not once.
    Bridged models rename parameters and add split copies of fused matrices: so names and copies stay out.
    """
    config = hf.config.get_text_config()
    keys = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    text = repr([getattr(config, k, None) for k in keys]).encode()
    return _digest(hf, text, lambda values: torch.signbit(values) if values.is_floating_point() else values)


def weights_digest(hf: Any) -> str:
    """Hash of some weights to the bit: another after any change of them in memory, the same for the same dtype."""
    return _digest(hf, b"", lambda values: values.view(torch.uint8))


def _digest(hf: Any, text: bytes, of: Callable[[Tensor], Tensor]) -> str:
    names = {name.replace("._original_component", ""): p for name, p in hf.named_parameters()}
    halves = (".gate.", ".in.")
    fused = {".qkv.": (".q.", ".k.", ".v."), ".gate_up_proj.": halves, ".input_linear.": halves}
    split = {n.replace(whole, part) for whole, parts in fused.items() for n in names if whole in n for part in parts}
    parts = []
    for name, p in names.items():
        if name not in split:
            values = p.detach().flatten()[:: max(1, -(-p.numel() // _SAMPLE))].contiguous()
            parts.append(str(tuple(p.shape)).encode() + of(values).cpu().numpy().tobytes())
    return hashlib.sha256(text + b"".join(sorted(parts))).hexdigest()[:16]
