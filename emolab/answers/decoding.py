"""How one batch is written: a prompt that many rows share is read once, and rows that have ended leave the batch.

`answers.generation` says what to write; token by token, transformers' `generate` does it. Both make grids of steerings
cheap, which ask few questions many times, and in which some rows end early and some, steered too far, never.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor

from emolab.models.hooks import Place
from emolab.models.model import Model
from emolab.models.prompts import Batch
from emolab.models.sharing import begin, new_cache, pays, read_prompts
from emolab.steering.edits import LayerEdit, keep_rows
from emolab.steering.steering import Steering

Each = Callable[[Tensor, Tensor], None]  # (ids written so far [row, token], scores of the next one [row, vocab])
_MANY = 8  # rows from which on those that have ended leave: to go on without them costs about as much as one step


def opened(model: Model, batch: Batch, *, early: bool) -> tuple[Batch, DynamicCache | None]:
    """The batch, and a cache with what its prompts share already read; edits count on from there.

    What all prompts begin with is read once, and of prompts that many rows share the rest, too. The padding may stand
    behind what is shared then. Where there is no such cache, `generate` takes care of everything. Rows with the
    beginning of an answer are read one by one, and so are rows that are edited `early`, before the prompt's last token.
    """
    past = new_cache(model)
    if past is None or batch.response_mask.any() or early:
        return batch, past
    batch, past = begin(model, batch) or (batch, past)
    prompts, rows = torch.cat([batch.input_ids, batch.attention_mask], 1).unique(dim=0, return_inverse=True)
    width = batch.input_ids.shape[1]
    if 2 * len(prompts) <= len(rows) and pays(width - past.get_seq_length()):
        read_prompts(model, past, replace(batch, input_ids=prompts[:, :width], attention_mask=prompts[:, width:]), rows)
    return batch, past


def steered_early(steerings: list[Steering | None]) -> bool:
    """Whether any of these may edit a token before the last one of the prompt: then each row is read by itself."""
    return any(steering is not None and steering.positions != "generated" for steering in steerings)


def write(
    runner: Any,
    batch: Batch,
    config: GenerationConfig,
    penalty: float,
    past: DynamicCache | None,
    edits: Mapping[Place, LayerEdit],
    each: Each | None = None,
) -> Int[Tensor, "row token"] | None:
    """What follows the prompts, greedy or sampled; behind a row's end token anything may stand.

    penalty: see `emolab.Writing`. past: from `opened`. each: called before each token with what was written so far and
    the scores that the next one is chosen by. Of eight rows or more: once a quarter have ended, the others go on alone,
    and the edits with them. None where logits are not finite: there is nothing to choose by.
    """
    ids = batch.input_ids
    mask = batch.attention_mask
    first = ids.shape[1]
    end = first + config.max_new_tokens
    ends = ids.new_tensor(config.eos_token_id or [])
    own = mask == 1  # the prompts' tokens, without padding
    rows = torch.arange(len(ids), device=ids.device)  # that still write
    whole = ids.new_zeros(len(ids), end)
    with _only(runner, config):
        while True:
            start = ids.shape[1]
            config = copy.copy(config)
            config.max_new_tokens = end - start
            rule = _OwnTokens(penalty, own[rows], ends)
            told = [] if each is None else [_Told(each, first)]
            options: dict[str, Any] = {"generation_config": config, "logits_processor": [rule, *told]}
            if past is not None:
                for edit in edits.values():
                    edit.seen = past.get_seq_length()
                stop = [_ManyEnded(ends, start)] if len(ends) and len(rows) >= _MANY else []
                options |= {"past_key_values": past, "stopping_criteria": stop}
            ids = runner.generate(ids, attention_mask=mask, **options)
            if rule.failed:
                return None
            if past is None:
                return ids[:, first:]
            whole[rows, start : ids.shape[1]] = ids[:, start:]
            go_on = (~torch.isin(ids[:, start:], ends).any(1)).nonzero()[:, 0]
            if ids.shape[1] == end or not len(go_on):
                break
            rows = rows[go_on]
            ids = ids[go_on]
            mask = torch.cat([mask[go_on], mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], 1)
            past.batch_select_indices(go_on)
            keep_rows(edits, go_on)
    return whole[:, first:]


class _OwnTokens(LogitsProcessor):
    """The repetition penalty over what each row itself holds: its prompt and what it has written, no padding.

    transformers' own counts padding, which often is the end token: a row in a batch would then go on for longer than
    the same row alone. own: which tokens of the prompts are none.
    """

    def __init__(self, penalty: float, own: Bool[Tensor, "row token"], ends: Tensor) -> None:
        self.penalty, self.own, self.ends, self.prompt_len = penalty, own, ends, own.shape[1]
        self.failed = torch.zeros((), dtype=torch.bool, device=own.device)  # whether some row had nothing to choose by

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken = ~scores.amax(1).isfinite()
        if not broken.is_cpu or broken.any():  # a GPU is not waited for: `write` looks when all is written
            ended = torch.isin(input_ids[:, self.prompt_len :], self.ends).any(1)
            self.failed = self.failed | (broken & ~ended).any()
            scores = scores.masked_fill(broken[:, None], 0.0)  # nobody reads on behind a row's end
        if self.penalty == 1:
            return scores
        prompt = torch.where(self.own, input_ids[:, : self.prompt_len], input_ids[:, -1:])  # padding: one that counts
        own = torch.cat([prompt, input_ids[:, self.prompt_len :]], 1)
        logits = scores.gather(1, own)
        return scores.scatter(1, own, torch.where(logits < 0, logits * self.penalty, logits / self.penalty))


class _Told(LogitsProcessor):
    """Hands what was written so far, and the scores of the next token, to a function."""

    def __init__(self, each: Each, prompt_len: int) -> None:
        self.each, self.prompt_len = each, prompt_len

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.each(input_ids[:, self.prompt_len :], scores)
        return scores


class _ManyEnded:
    """Stops all rows when a quarter have ended; `generate` alone takes these along until the last one ends."""

    def __init__(self, ends: Tensor, start: int) -> None:
        self.ends, self.start = ends, start

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ended = torch.isin(ids[:, self.start :], self.ends).any(1)
        return (4 * ended.sum() >= len(ids)).expand(len(ids))  # on the device, which need not wait for an answer


@contextlib.contextmanager
def _only(runner: Any, config: GenerationConfig) -> Iterator[None]:
    """Only this config counts; else `generate` fills its gaps from the model's own (repetition penalty and others)."""
    before = runner.generation_config
    runner.generation_config = config
    try:
        yield
    finally:
        runner.generation_config = before
