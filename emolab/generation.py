"""Batched, steered, KV-cached generation.

>>> import emolab
>>> model = emolab.load_model("smollm2")
>>> emolab.generate(model, "Tell me about the park.", steering=emolab.Steering(vectors, {"joy": 2.0}, site="attn"))
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig

from emolab.decoding import opened, plain_options, write
from emolab.edits import hooked
from emolab.errors import EmolabError, need_model, need_number, need_texts
from emolab.memory import halving
from emolab.models import Model
from emolab.prompts import Batch, check_context, encode, plan_batches, render_prompts
from emolab.sites import bridge_has_hooks, runs_plain
from emolab.steering import Steering, as_rows, build_edits


def generate(
    model: Model,
    prompts: str | list[str],
    *,
    steering: Steering | list[Steering | None] | None = None,
    max_new_tokens: int = 80,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
    raw: bool = False,
    use_cache: bool = True,
    progress: bool = False,
    allow_mismatch: bool = False,
) -> list[str]:
    """Answers to prompts, in their order, each cut at its end-of-answer token and stripped of outer white space.

    >>> generate(model, ["Tell me about the park.", "Tell me about the rain."], max_new_tokens=40)
    >>> generate(model, ["Tell me about the park."] * 3, steering=[joy, None, fear])   # one steering per row

    prompts      queries, put through the model's chat template (`render_prompts`, neutral); with raw=True complete
                 prompt strings.
    steering     for all rows, or a list with one for each (None: unsteered). Rows do not influence one another.
    temperature  0 is greedy, and then seed plays no part. Above 0: sampling with top_p. The same seed, prompts,
                 batch_size and device give the same texts; another batch composition gives other samples (batch i draws
                 from seed + i; where one was halved for want of memory, later ones from other numbers). Global random
                 state is left as it was.
    batch_size   None: see `plan_batches`. Prompts are batched by length. A batch with too little memory is halved.
    use_cache    False recomputes every token's past: slow, for tests.

    Runs on the plain model with hooks on its modules. Where the bridge carries hooks (inside `steered`, or your own),
    or where it is the user's own bridge, runs on the bridge, in the given order, so that those hooks count. The model's
    own generation settings (repetition penalty and the like) are left out, its end-of-answer tokens kept. Raises
    EmolabError for vectors of another model, a steering list of another length, or prompts that leave no room for the
    answer.
    """
    need_model(model)
    # A raw prompt may be empty: it stands for BOS.
    prompts = need_texts("prompts", [prompts] if isinstance(prompts, str) else prompts, filled=not raw)
    if not prompts:
        raise EmolabError("prompts are empty; expected at least one text")
    need_number("max_new_tokens", max_new_tokens, 1, whole=True)
    need_number("temperature", temperature, 0)
    need_number("top_p", top_p, 0, 1)
    if not top_p:
        raise EmolabError("top_p is 0; expected a number above 0, up to 1")
    need_number("seed", seed, whole=True)
    rows = _per_row(model, steering, len(prompts), allow_mismatch)
    rendered = prompts if raw else render_prompts(model, prompts)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        use_cache=use_cache,
        eos_token_id=model.eos_ids or None,
        pad_token_id=model.tokenizer.pad_token_id,
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}),
    )
    seeds = itertools.count(seed)

    def answer(index: list[int]) -> list[str]:
        batch = encode(model, [rendered[i] for i in index])
        steerings = [rows[i] for i in index] if rows else []
        edits, plain = _edits(model, steerings, batch, use_cache)
        runner = model.hf if plain else model.bridge.original_model
        # On the plain model only emolab's hooks see tensors; those of others, on the bridge, may keep theirs.
        with _sampling(model, next(seeds), temperature), torch.inference_mode(plain):
            past = opened(model, steerings, batch) if plain and use_cache else None
            with hooked(model, edits, plain=plain):
                ids = write(runner, batch, config, past, edits)
        return _decode(model, ids)

    texts = [""] * len(prompts)
    plan = _plan(model, rendered, batch_size, extra=max_new_tokens)
    with tqdm(total=len(prompts), disable=not progress, desc="generate", unit="text") as bar:
        for index, answers in halving(answer, plan):
            for i, text in zip(index, answers, strict=True):
                texts[i] = text
            bar.update(len(index))
    return texts


def forward(model: Model, runner: Any, batch: Batch, keep: int) -> Float[Tensor, "row token vocab"]:
    """Logits of the last `keep` tokens, from the plain model (runner is `model.hf`) or else through the bridge."""
    mask = batch.attention_mask
    if runner is not model.hf or model.hf is model.bridge.original_model:
        return model.bridge(batch.input_ids, attention_mask=mask, logits_to_keep=keep, use_cache=False)[:, -keep:]
    return runner(input_ids=batch.input_ids, use_cache=False, **plain_options(runner, mask, keep)).logits[:, -keep:]


def _per_row(model: Model, steering: Any, n: int, allow_mismatch: bool) -> list[Steering | None]:
    """One entry per row, or none at all where nothing is steered."""
    if isinstance(steering, list | tuple) and len(steering) != n:
        raise EmolabError(f"{len(steering)} steerings for {n} prompts; expected one, or a list with one per prompt")
    rows = as_rows(model, steering, allow_mismatch)
    return rows * n if len(rows) == 1 else rows


def _plan(model: Model, prompts: list[str], batch_size: int | None, *, extra: int) -> list[list[int]]:
    lengths = [len(ids) + extra for ids in model.tokenizer(prompts, add_special_tokens=False).input_ids]
    check_context(model, max(lengths))
    if bridge_has_hooks(model):  # they may be one per row: keep the given order
        lengths = [max(lengths)] * len(lengths)
    return plan_batches(model, lengths, batch_size, cached=True)


def _edits(model: Model, steerings: list[Steering | None], batch: Batch, cached: bool) -> tuple[dict, bool]:
    """This batch's edits, and whether they go on the plain model (else on the bridge)."""
    if len({id(s) for s in steerings}) == 1:
        steerings = steerings[:1]  # one table for all rows
    own = batch.attention_mask.sum(1)
    pads = (batch.input_ids.shape[1] - own).tolist()
    prompts = list(zip(pads, (own - batch.response_mask.sum(1)).tolist(), strict=True))
    edits = build_edits(model, steerings, prompts, cached)
    return edits, runs_plain(model, {site for site, _ in edits})


@contextlib.contextmanager
def _sampling(model: Model, seed: int, temperature: float) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if temperature > 0:
            stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
            torch.manual_seed(seed)
        yield


def _decode(model: Model, ids: Int[Tensor, "row token"]) -> list[str]:
    ends, answers = set(model.eos_ids), []
    for row in ids.tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:stop])
    return [text.strip() for text in model.tokenizer.batch_decode(answers, skip_special_tokens=True)]
