"""How one batch is written: a prompt that many rows share is read once, and rows that have ended leave the batch.

`emolab.generation` says what to write; token by token, transformers' `generate` does it. Both make grids of steerings
cheap, which ask few questions many times, and in which some rows end early and some, steered too far, never.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from emolab.edits import Edit, keep_rows
from emolab.models import Model
from emolab.prompts import Batch
from emolab.steering import Steering

SHARE_FROM = 8  # tokens of a prompt from which on reading it once pays
_MANY = 8  # rows from which on those that have ended leave: to go on without them costs about as much as one step


def new_cache(model: Model) -> DynamicCache | None:
    """An empty cache whose rows may be taken apart; None where that might not be the same.

    So it is where somebody else's hooks are on the model (they may change rows one by one), or where it remembers in
    another way.
    """
    hooks = (hook for m in model.hf.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):  # its own only look on
        return None
    if not model.hf._supports_default_dynamic_cache():
        return None
    past = DynamicCache(config=model.hf.config.get_text_config(decoder=True))
    return None if {type(x) for x in past.layers} - {DynamicLayer, DynamicSlidingWindowLayer} else past


def opened(model: Model, steerings: list[Steering | None], batch: Batch) -> DynamicCache | None:
    """A `new_cache` with what the prompts share already read; edits count on from there.

    Where there is none, `generate` takes care of everything.
    """
    past = new_cache(model)
    if past is None:
        return None
    # Nothing of theirs is steered before the last token of the prompt, unless positions say so.
    early = any(s is not None and s.positions != "generated" for s in steerings)
    prompts, rows = torch.cat([batch.input_ids, batch.attention_mask], 1).unique(dim=0, return_inverse=True)
    if not early and 2 * len(prompts) <= len(rows) and batch.prompt_len >= SHARE_FROM:
        ids, mask = prompts[:, : batch.prompt_len - 1], prompts[:, batch.prompt_len : -1]
        model.hf(input_ids=ids, use_cache=True, past_key_values=past, **plain_options(model.hf, mask, keep=1))
        past.reorder_cache(rows)
    return past


def write(
    runner: Any, batch: Batch, config: GenerationConfig, past: DynamicCache | None, edits: dict[tuple[str, int], Edit]
) -> Int[Tensor, "row token"]:
    """What follows the prompts, greedy or sampled; behind a row's end token anything may stand.

    past: from `opened`. Once a quarter of the rows have ended, the others go on alone, and the edits with them.
    """
    ids, mask, end = batch.input_ids, batch.attention_mask, batch.prompt_len + config.max_new_tokens
    with _only(runner, config):
        if past is None:
            return runner.generate(ids, attention_mask=mask, generation_config=config)[:, batch.prompt_len :]
        found = ids.new_zeros(len(ids), end)
        rows, ends = torch.arange(len(ids), device=ids.device), ids.new_tensor(config.eos_token_id or [])
        while True:
            start, config = ids.shape[1], copy.copy(config)
            config.max_new_tokens = end - start
            for edit in edits.values():
                edit.seen = past.get_seq_length()
            stop = [_ManyEnded(ends, start)] if len(ends) and len(rows) >= _MANY else []
            options = {"generation_config": config, "past_key_values": past, "stopping_criteria": stop}
            ids = runner.generate(ids, attention_mask=mask, **options)
            found[rows, start : ids.shape[1]] = ids[:, start:]
            go_on = (~torch.isin(ids[:, start:], ends).any(1)).nonzero()[:, 0]
            if ids.shape[1] == end or not len(go_on):
                break
            rows, ids = rows[go_on], ids[go_on]
            mask = torch.cat([mask[go_on], mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], 1)
            past.batch_select_indices(go_on)
            keep_rows(edits, go_on)
    return found[:, batch.prompt_len :]


class _ManyEnded:
    """Stops all rows when a quarter have ended; `generate` alone takes these along until the last one ends."""

    def __init__(self, ends: Tensor, start: int) -> None:
        self.ends, self.start = ends, start

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ended = torch.isin(ids[:, self.start :], self.ends).any(1)
        return (4 * ended.sum() >= len(ids)).expand(len(ids))  # on the device, which need not wait for an answer


def plain_options(runner: Any, mask: Tensor, keep: int) -> dict[str, Any]:
    """The mask, and what else a plain model takes: positions that leave padding out, only the last `keep` logits."""
    options: dict[str, Any] = {"attention_mask": mask}
    accepted = inspect.signature(runner.forward).parameters
    if "position_ids" in accepted:  # models with absolute positions do not work them out from the mask by themselves
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    return options


@contextlib.contextmanager
def _only(runner: Any, config: GenerationConfig) -> Iterator[None]:
    """Only this config counts; else `generate` fills its gaps from the model's own (repetition penalty and others)."""
    before, runner.generation_config = runner.generation_config, config
    try:
        yield
    finally:
        runner.generation_config = before
