"""Memory: batches that fit what is free, and halves of a batch that did not fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from emolab.base.errors import ResourceError, first_line
from emolab.models.model import Model

T = TypeVar("T")
SMALL = 2**31  # bytes: batches below are planned the same whatever is free, so that small models always give one plan
SHARE = 0.5  # of the free memory, for the estimate is one


def halving(run: Callable[[list[int]], T], plan: Iterable[list[int]]) -> Iterator[tuple[list[int], T]]:
    """(rows, run(rows)) of each batch of the plan; where memory runs out in halves, and so from there on.

    It warns once, with the batch size that it came to. Rows keep their order, and each is handed out once.

    >>> list(halving(len, [[2, 0], [1]]))
    [([2, 0], 2), ([1], 1)]

    Raises ResourceError where a single row does not fit.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    waiting = [list(rows) for rows in plan][::-1]
    limit: int | None = None
    to_tell = False
    while waiting:
        rows = waiting.pop()
        if limit is not None and len(rows) > limit:
            waiting += [rows[i : i + limit] for i in range(0, len(rows), limit)][::-1]
            continue
        try:
            result = run(rows)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                raise
            reason = first_line(error)
        else:
            if to_tell:
                warnings.warn(f"memory ran out; going on in batches of {limit}", stacklevel=3)
                to_tell = False
            yield rows, result
            continue
        clear_device_cache(garbage_collection=True)  # only out here has the failed attempt let go of its tensors
        if len(rows) == 1:
            raise ResourceError(
                f"memory ran out with one text alone ({reason}); use shorter texts, a smaller max_new_tokens, "
                "dtype='bfloat16' or a device with more memory"
            )
        limit = len(rows) // 2
        to_tell = True
        waiting.append(rows)


def room(model: Model, longest: int, *, logits: bool = False) -> float:
    """Tokens that fit half of the memory that is free on the model's device, by an estimate; at least 2 GiB's worth.

    A token costs, beside the weights, which are there already: its keys and values in every layer; in one layer
    activations of 8 times d_model and 4 times the width of the MLP; a row of every head's attention over `longest`
    tokens, twice in float32; and with logits=True its logits, in the model's precision and twice in float32. Free is
    what the device reports (CUDA, with what torch holds unused) or the operating system (CPU), rounded down to a power
    of two, so that batches do not change with every small change of it. Other devices: no limit.
    """
    config, b = model.hf.config.get_text_config(), model.dtype.itemsize
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]  # Gemma 4's differ
    n_kv = max(getattr(layer, "num_key_value_heads", None) or model.n_heads for layer in layers)
    width = max(getattr(layer, "intermediate_size", None) or 4 * model.d_model for layer in layers)
    cost = b * (2 * model.n_layers * n_kv * model.d_head + 8 * model.d_model + 4 * width) + 8 * model.n_heads * longest
    if logits:
        cost += (b + 8) * model.bridge.cfg.d_vocab
    free = free_bytes(model.device)
    return float("inf") if free is None else max(SMALL, SHARE * 2 ** (free.bit_length() - 1)) / cost


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device, None where it cannot be asked."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        import psutil

        return psutil.virtual_memory().available
    return None
