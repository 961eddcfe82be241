"""Read a Hugging Face model and its tokenizer from a directory or the hub; what goes wrong ends in one line.

>>> hf, tokenizer, commit = from_pretrained("path/to/a/directory")
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from huggingface_hub import errors as hub
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file, extract_commit_hash

from emolab.base.errors import EmolabError, FileError
from emolab.base.storage import user_path

# Weights as transformers and peft may read them, with pickle inside.
_PICKLES = ("pytorch_model*.bin", "adapter_model*.bin", "*.pt", "*.pth", "*.ckpt")
_OFFLINE = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError)


def from_pretrained(
    source: str,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any, str | None]:
    """(model, tokenizer, commit) as transformers reads them; see `emolab.load_model` for the options.

    commit is that of the hub, also where `revision` is a branch or nothing; of a directory, `revision`.

    Raises EmolabError, in one line, for whatever keeps them from being read: no such name, a gated one, the hub out of
    reach, a pickle, missing or damaged files, weights that do not cover the model. Warns of weights that the model has
    no place for.
    """
    if dtype != "auto":
        dtype = _known_dtype(dtype)
    if device is not None and device_map is not None:
        raise EmolabError("give device= for one device or device_map= for several, not both")
    device = _usable_device(device)
    place, gguf = _place(source)
    try:
        file = cached_file(place, gguf or "config.json", revision=revision)
        commit = extract_commit_hash(file, None) or revision  # one commit for config, tokenizer and weights
        options: dict[str, Any] = {"revision": commit, "trust_remote_code": trust_remote_code}
        if gguf is not None:
            options["gguf_file"] = gguf
        # None: a folder with nothing but an adapter, which names its base model.
        config = None if file is None else AutoConfig.from_pretrained(place, **options)
        if tokenizer is None or isinstance(tokenizer, dict):
            tokenizer = _tokenizer(source, place, {**options, **(tokenizer or {})})
        if config is not None:
            options["config"] = config
        if gguf is not None and hasattr(transformers, "GgufConfig"):  # newer versions would keep some blocks packed
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        options["dtype"] = torch.float32 if dtype == "auto" and gguf is not None else dtype
        # On no default device of the user's; a pair, with output_loading_info.
        with torch.device("cpu"), _without_bar():
            hf, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                place, device_map=device_map, use_safetensors=True, output_loading_info=True, **options
            )
        if gguf is not None:
            _forget_blocks(hf)
        # A quantised model is put on its device while it is read, and cannot be moved.
        quantised = getattr(hf, "is_quantized", False)
        hf = hf if device_map is not None or quantised else hf.to(device)
        slow = hf.dtype == torch.float16 or (hf.dtype == torch.bfloat16 and not fast_bfloat16())  # on a processor
        if dtype == "auto" and not quantised and hf.device.type == "cpu" and slow:
            hf, hf.config.dtype = hf.float(), torch.float32
    except EmolabError:
        raise
    except Exception as error:  # transformers, safetensors, torch and the hub raise a zoo of their own
        raise EmolabError(_reason(source, error, gguf is not None)) from error
    _check_coverage(source, hf, info)
    return hf, tokenizer, commit


def _known_dtype(dtype: str | torch.dtype) -> torch.dtype:
    known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise EmolabError(f"unknown dtype {dtype!r}; expected 'float32', 'bfloat16', 'float16', 'auto' or one of torch")
    return known


def _check_coverage(source: str, hf: Any, info: dict[str, Any]) -> None:
    """Raise EmolabError where weights are missing, which transformers would draw at random; warn of those too many."""
    name = type(hf).__name__
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise EmolabError(
            f"the weights of {source!r} lack {len(missing)} of the tensors of {name}, the first is {missing[0]}; save "
            "the whole model again with save_pretrained, or fetch it again"
        )
    if unexpected:
        warnings.warn(
            f"{len(unexpected)} tensors in the weights of {source!r} have no place in {name}, the first is "
            f"{unexpected[0]}; they were left out",
            stacklevel=4,
        )


def fast_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 (AVX512_BF16, AMX, BF16 of ARM) that torch uses.

    With them it is four times as fast as float32, with AVX-512 alone 0.8 times, with AVX2 0.3 (on an AMD EPYC).
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        return any(on for name, on in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _usable_device(device: str | torch.device | None) -> str | torch.device:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except Exception as error:  # RuntimeError and AssertionError, by what is missing
        raise EmolabError(f"torch cannot use device {str(device)!r} here ({_line(error)}); try 'cpu'") from error
    return device


def _place(source: str) -> tuple[str, str | None]:
    """The directory that `source` names, or `source` where it can only be a hub id; and the GGUF file to read there."""
    path = user_path(source)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return str(path.parent), _whole(path)
    if source.strip() and path.is_dir():
        return str(path), _gguf_alone(path)
    no_hub_id = path.exists() or source.lower().endswith(".gguf") or source.startswith((".", "~", os.sep))
    if no_hub_id or source.count("/") > 1 or not source.strip():
        raise EmolabError(
            f"no model {source!r}: there is no such directory or GGUF file; expected 'smollm2', a directory with a "
            "Hugging Face model, a .gguf file, or a hub id like 'org/name'"
        )
    return source, None


def _gguf_alone(folder: Path) -> str | None:
    """The one GGUF file of a folder without a Hugging Face model; EmolabError where weights can only be a pickle."""
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        pickles = sorted(file.name for kind in _PICKLES for file in folder.glob(kind))
        if pickles and not any(folder.glob("*.safetensors")):
            raise FileError(
                f"directory {str(folder)!r} holds weights as {pickles[0]}, a pickle, which can run code when it is "
                "read: emolab never reads one; if you trust it, read it with transformers, and save_pretrained it again"
            )
        return None
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4]) + (", ..." if len(files) > 4 else "")
        raise EmolabError(f"directory {str(folder)!r} holds {len(files)} GGUF files ({names}); give the path of one")
    return _whole(files[0]) if files else None


def _whole(file: Path) -> str:
    """The name of a GGUF file; EmolabError where it is one of several that make a model together."""
    part = re.search(r"-(\d{5})-of-(\d{5})\.gguf$", file.name, re.IGNORECASE)
    if part and int(part[2]) > 1:
        raise EmolabError(
            f"{str(file)!r} is part {int(part[1])} of a model split into {int(part[2])} files, which transformers "
            "cannot read; join them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    return file.name


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """One reader of GGUF draws a progress bar that transformers' own setting does not reach."""
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils  # the bar is not among the names that it gives out
    bar = reader.tqdm
    reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


def _forget_blocks(hf: Any) -> None:
    """A GGUF file's weights were unpacked, but transformers goes on calling the model quantised and refuses to save."""
    hf.hf_quantizer, hf.is_quantized, hf.quantization_method = None, False, None
    vars(hf.config).pop("quantization_config", None)


def _tokenizer(source: str, place: str, options: dict[str, Any]) -> Any:
    try:
        with _heard() as messages:
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:
        raise EmolabError(
            f"{source!r} has no tokenizer that can be read; save it there too (tokenizer.save_pretrained), or pass "
            f"load_model(..., tokenizer=...) ({_line(error)})"
        ) from error
    for message in dict.fromkeys(messages):
        warnings.warn(
            f"the tokenizer of {source!r} warns: {message} (what it asks for: load_model(..., tokenizer={{...}}))",
            stacklevel=4,
        )
    return tokenizer


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What transformers logs as a warning meanwhile, which `quiet` keeps off the screen, one line each."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(" ".join(record.getMessage().split()))
    logger = logging.getLogger("transformers")
    level, handlers = logger.level, logger.handlers
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING)
    try:
        yield messages
    finally:
        logger.handlers = handlers
        logger.setLevel(level)


def _reason(source: str, error: Exception, gguf: bool) -> str:
    """One line: transformers' own, but where it does not say what to do here."""
    causes = list(_causes(error))
    text = " ".join(map(str, causes))
    if "trust_remote_code" in text:
        return f"{source!r} brings its own code; read it, and if you trust it, load_model(..., trust_remote_code=True)"
    if gguf and "controlvector" in text:
        return f"{source!r} holds control vectors, no model; read it with emolab.steering.from_gguf"
    if any(isinstance(cause, hub.GatedRepoError) for cause in causes):
        page = f"https://huggingface.co/{source}"
        return f"{source!r} is gated: accept its terms at {page}, then log in (`hf auth login`) or set HF_TOKEN"
    if any(isinstance(cause, _OFFLINE) for cause in causes):
        why = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        return (
            f"no model {source!r}: neither 'smollm2' nor a directory, and as a hub id not in the local cache while the "
            f"hub is out of reach{why}; where there is a network, `hf download {source} --local-dir DIR`, then "
            "load_model('DIR')"
        )
    if "ignore_mismatched_sizes" in text:  # the message names a report, which `quiet` keeps off
        return f"the weights of {source!r} have other shapes than its config.json says; save or fetch it again"
    if gguf:
        return (
            f"cannot read {source!r} ({_line(error)}): it is damaged, cut, no model, or of an architecture that "
            "transformers does not read from GGUF"
        )
    return f"cannot load {source!r}: {_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: Exception) -> str:
    """A message on one line, at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


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
