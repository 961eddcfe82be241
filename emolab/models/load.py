"""Load a model once, as a TransformerLens bridge for hooks and as a fast plain twin for generation and extraction."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emolab.base.errors import EmolabError, first_line, shown
from emolab.base.lazy import uncollected
from emolab.models.fetch import DEFAULT, MODELS, find
from emolab.models.hooks import forward
from emolab.models.model import Model
from emolab.models.pretrained import from_pretrained, quiet
from emolab.models.prompts import encode, render_prompts
from emolab.models.sites import is_checked, logit_gap
from emolab.models.threads import sharing_cores


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

    >>> model = emolab.load_model()                                    # "smollm2", the default: see emolab.models.fetch
    >>> model = emolab.load_model("Qwen/Qwen2.5-0.5B-Instruct", dtype="bfloat16")      # doctest: +SKIP
    >>> model = emolab.load_model("path/to/a/directory")
    >>> model = emolab.load_model("org/large", device_map="auto")      # over several GPUs # doctest: +SKIP
    >>> model = emolab.load_model((hf_model, hf_tokenizer))            # in memory; the objects are left as they are
    >>> model = emolab.load_model(bridge)                              # a TransformerBridge; tokenizer= if it has none

    device None is CUDA where there is one, else CPU. device_map instead spreads the layers over devices (accelerate);
    every weight must lie in memory, none on disk. A pair, a bridge or a Model keeps its own device and dtype. A
    quantised model is read where its packages are installed, or given as a pair; it has no site "head".
    dtype "auto" is that of the checkpoint, but on a CPU float32 in place of float16, and in place of bfloat16 where the
    processor has no instructions for it (`models.pretrained.fast_bfloat16`); float32 for a GGUF file and for smollm2.
    tokenizer is one to use in place of the model's own, or options for reading that one, as its warnings ask for them:
    {"fix_mistral_regex": True}. chat_template replaces the tokenizer's own, or names one of several that it has.
    revision is a branch, tag or commit of the hub; `Model.revision` is the commit, where known.

    Warns, in one line each, of what its tokenizer warns of, of an architecture that docs/families.md does not list,
    with what batches of it do, and of other processes that keep the cores busy, for which torch's threads would wait.

    Raises EmolabError, in one line, when nothing can be loaded under that name, when the architecture is unknown to
    TransformerLens, or when a bridge is in compatibility mode (processed weights: its vectors are not the model's).
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path):
        source = str(model)
        with sharing_cores(), quiet(), uncollected():
            hf, own_tokenizer, revision = from_pretrained(
                str(find(source)) if source in MODELS else source,
                tokenizer=tokenizer,
                device=device,
                device_map=device_map,
                dtype=dtype,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
        folder = Path(source).expanduser()
        name = folder.resolve().name if source not in MODELS and folder.exists() else source
        hf = hf.eval().requires_grad_(False)
        loaded = _bridged(name, source, revision, hf, _own_copy(own_tokenizer, chat_template))
        if tokenizer is None or isinstance(tokenizer, dict):
            # What "auto" came to: a worker's processor might come to something else.
            kind = str(loaded.dtype).removeprefix("torch.") if dtype == "auto" else dtype
            loaded.recipe = {"device_map": device_map, "dtype": kind, "trust_remote_code": trust_remote_code}
            loaded.recipe |= {"chat_template": chat_template, "tokenizer": tokenizer}
    elif isinstance(tokenizer, dict):
        raise EmolabError(
            f"tokenizer is {shown(tokenizer)}, options for reading one, and the model is given as an object; read the "
            "tokenizer with them and give it: AutoTokenizer.from_pretrained(..., **options)"
        )
    elif type(model).__name__ == "TransformerBridge":
        if model.compatibility_mode:
            raise EmolabError("this bridge is in compatibility mode (processed weights); pass a raw TransformerBridge")
        tokenizer = tokenizer or model.tokenizer
        if tokenizer is None:
            raise EmolabError("this TransformerBridge has no tokenizer; pass load_model(bridge, tokenizer=...)")
        hf = model.original_model.eval()
        name = hf.config.name_or_path or model.cfg.model_name
        loaded = Model(name, name, _commit(hf, revision), model, hf, _own_copy(tokenizer, chat_template))
    elif isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module):
        hf, own_tokenizer = model
        name = hf.config.name_or_path or type(hf).__name__
        loaded = _bridged(name, name, revision, hf.eval(), _own_copy(tokenizer or own_tokenizer, chat_template))
    else:
        raise EmolabError(
            f"cannot load a model from {type(model).__name__}; expected 'smollm2', a hub id, a directory, a GGUF file, "
            "a pair (hf_model, tokenizer) or a TransformerBridge"
        )
    if not is_checked(loaded.hf):
        warnings.warn(
            f"{type(loaded.hf).__name__} is not among the architectures that emolab is tested on: {_padding(loaded)}",
            stacklevel=2,
        )
    return loaded


@uncollected()
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

        names = {name.lower(): name for name in SUPPORTED_ARCHITECTURES}  # PhiMoE is PhimoeForCausalLM in transformers
        known = [names[c.__name__.lower()] for c in type(hf).__mro__ if c.__name__.lower() in names]
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
            what = f"{name!r} ({type(hf).__name__})"
            raise EmolabError(f"TransformerLens cannot bridge {what}: {first_line(error)}") from error
    bridge.cfg.n_devices = len({p.device for p in hf.parameters()})  # so that its own loops follow the layers
    return Model(name, source, _commit(hf, revision), bridge, hf, tokenizer)


def _padding(model: Model) -> str:
    """Whether padding changes the logits of a short prompt beside a longer one, and what to do."""
    prompts = render_prompts(model, ["How?", "Tell me about the park, and what you did there."])
    batches = [encode(model, prompts), *(encode(model, [prompt]) for prompt in prompts)]
    advice = "use batch_size=1, and see `emolab info --check`"
    try:
        with torch.inference_mode():
            together, *alone = (forward(model, model.hf, batch, keep=1)[:, -1].float() for batch in batches)
    except Exception as error:  # whatever an unknown architecture raises, it was loaded
        return f"its batches cannot be checked ({first_line(error)}); {advice}"
    off, allowed = logit_gap(model, together, torch.cat(alone))
    if off < allowed:
        return "padding does not change its logits; `emolab info --check` runs all checks"
    return f"padding changes its logits by {off:.1%} of their spread; {advice}"


def _commit(hf: Any, revision: str | None) -> str | None:
    return getattr(hf.config, "_commit_hash", None) or revision


def _own_copy(tokenizer: Any, chat_template: str | None) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = _template(tokenizer.chat_template, chat_template)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:  # where there is none of these, `encode` pads with id 0, masked as always
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    return tokenizer


def _template(own: str | dict[str, str] | None, chosen: str | None) -> str | None:
    """The one chat template that counts: some tokenizers have several, by name."""
    if chosen is None and not isinstance(own, dict):
        return own
    named = own if isinstance(own, dict) else {}
    name = chosen or "default"
    if name in named:
        return named[name]
    if "{" in name:
        return name
    has = f"the chat templates {', '.join(named)}" if named else "no chat templates by name"
    expected = f"one of these names, as {next(iter(named))!r}" if named else "None"
    raise EmolabError(
        f"this tokenizer has {has}, and chat_template is {shown(chosen)}; expected {expected}, or a template's text"
    )
