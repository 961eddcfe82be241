"""Batched, steered, KV-cached generation: whole answers, or token by token and from any token on."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from emolab.answers.decoding import Each, opened, steered_early, write
from emolab.answers.writing import Writing, need_writing
from emolab.base.errors import EmolabError, need_number, need_texts
from emolab.base.progress import progress_bar, steps
from emolab.models.finite import not_finite
from emolab.models.hooks import Function, Place, at_sites, runs_plain
from emolab.models.memory import halving
from emolab.models.model import Model
from emolab.models.prompts import Batch, check_context, encode, plan_batches, prompt_ids, render_prompts, text_ids
from emolab.models.roles import token_roles
from emolab.models.sites import bridge_has_hooks
from emolab.models.templates import begins_with_reasoning, ends_in_reasoning
from emolab.steering.edits import LayerEdit, hooked
from emolab.steering.steering import Steering, as_rows, build_edits, needs_roles


def generate(
    model: Model,
    prompts: str | list[str],
    *,
    steering: Steering | list[Steering | None] | None = None,
    max_new_tokens: int = 80,
    writing: Writing = Writing(),
    raw: bool = False,
) -> list[str]:
    """Answers to prompts, in their order, each cut at its end-of-answer token and stripped of outer white space.

    >>> generate(model, ["Tell me about the park.", "Tell me about the rain."], max_new_tokens=40)
    >>> generate(model, ["Tell me about the park."] * 3, steering=[joy, None, fear])   # one steering per row

    prompts      queries, put through the model's chat template (`render_prompts`, neutral); with raw=True complete
                 prompt strings.
    steering     for all rows, or a list with one for each (None: unsteered). Rows do not influence one another.
    writing      how each token is chosen, how many rows at once, and the wording of the neutral prompt:
                 `emolab.Writing`, by default greedy with repetition penalty 1.1. Prompts are batched by length; a batch
                 with too little memory is halved. Sampled texts are a function of seed, prompts, batch_size and device;
                 another batch composition gives other samples (batch i draws from seed + i; where one was halved, later
                 ones from other numbers). Global random state is left as it was.

    Runs on the plain model with hooks on its modules. Where the bridge carries hooks (inside `steered`, or your own),
    or where it is the user's own bridge, runs on the bridge, in the given order, so that those hooks count. The model's
    own generation settings (repetition penalty and the like) are left out, its end-of-answer tokens kept. Warns of a
    prompt that opens a think block, and of answers that do: these are reasoning. Raises EmolabError for vectors of
    another model, a steering list of another length, prompts that leave no room for the answer, or logits that are not
    finite numbers.
    """
    # A raw prompt may be empty: it stands for BOS.
    prompts = need_texts("prompts", [prompts] if isinstance(prompts, str) else prompts, filled=not raw)
    if not prompts:
        raise EmolabError("prompts are empty; expected at least one text")
    need_number("max_new_tokens", max_new_tokens, 1, whole=True)
    need_writing(writing)
    rows = per_row(model, steering, len(prompts))
    rendered = prompts if raw else render_prompts(model, prompts, templates=writing.templates)
    seeds = itertools.count(writing.seed)

    def answer(index: list[int]) -> list[str]:
        batch = [rendered[i] for i in index]
        steerings = [rows[i] for i in index] if rows else []
        with steps(bar, len(index), max_new_tokens) as reach:
            each: Each = lambda ids, scores: reach(ids.shape[1])  # noqa: E731
            ids = write_batch(model, batch, steerings, max_new_tokens, replace(writing, seed=next(seeds)), each=each)
        nonlocal reasoning
        reasoning = reasoning or any(map(begins_with_reasoning, model.tokenizer.batch_decode(ids[:, :8])))
        return decoded(model, ids)

    texts = [""] * len(prompts)
    reasoning = any(map(ends_in_reasoning, rendered))
    plan = _plan(model, rendered, writing.batch_size, extra=max_new_tokens)
    with progress_bar("generate", len(prompts)) as bar:
        for index, answers in halving(answer, plan):
            for i, text in zip(index, answers, strict=True):
                texts[i] = text
    if reasoning:
        warnings.warn(
            f"a prompt or an answer of {model.name!r} opens a block of reasoning, which vectors and judges would read "
            "beside the answer; close the block in the prompt, give a chat template that does "
            "(load_model(..., chat_template=...)), or use a model that does not reason",
            stacklevel=2,
        )
    return texts


def write_batch(
    model: Model,
    prompts: list[str],
    steerings: list[Steering | None],
    max_new_tokens: int,
    writing: Writing,
    *,
    begun: list[list[int]] | None = None,
    reads: Sequence[tuple[Place, Function]] = (),
    each: Each | None = None,
) -> Int[Tensor, "row token"]:
    """What steered rows of one batch of complete prompts write, behind the ids that they have begun with.

    reads: functions at sites, given activations before they are steered. each: as `decoding.write` takes it. Raises
    EmolabError for what does not fit the model's context, and where logits are not finite.
    """
    batch = encode(model, prompts, begun)
    edits, _ = edits_of(model, steerings, batch, cached=True)
    early = steered_early(steerings)
    return write_edited(model, batch, edits, max_new_tokens, writing, early=early, reads=reads, each=each)


def write_edited(
    model: Model,
    batch: Batch,
    edits: Mapping[Place, LayerEdit],
    max_new_tokens: int,
    writing: Writing,
    *,
    early: bool = False,
    reads: Sequence[tuple[Place, Function]] = (),
    each: Each | None = None,
) -> Int[Tensor, "row token"]:
    """`write_batch` with edits of one's own, whose mask counts calls as `cached` and knows the `prompt_spans`.

    early: whether they may edit a token before the last one of a prompt.
    """
    check_context(model, batch.input_ids.shape[1] + max_new_tokens)
    config = generation_config(model, max_new_tokens, writing)
    plain = runs_plain(model, {site for site, _ in edits})
    # On the plain model only emolab's hooks see tensors; those of others, on the bridge, may keep theirs.
    with torch.inference_mode(plain), _sampling(writing):
        begun, past = opened(model, batch, early=early) if plain else (batch, None)
        with at_sites(model, reads, plain=plain), hooked(model, edits, plain=plain) as runner:
            ids = write(runner, begun, config, writing.repetition_penalty, past, edits, each)
    if ids is None:
        prompt = model.tokenizer.decode(batch.input_ids[0, batch.attention_mask[0] == 1])
        raise not_finite(model, "the logits", prompt=prompt)
    return ids


def stream(
    model: Model,
    prompts: list[str],
    *,
    each: Each,
    steering: list[Steering | None] | None = None,
    begun: list[list[int]] | None = None,
    reads: Sequence[tuple[Place, Function]] = (),
    max_new_tokens: int = 80,
    writing: Writing = Writing(),
) -> list[list[int]]:
    """The ids of one answer to each complete prompt, without the end token, as one batch; equal to `generate`'s.

    >>> said = []
    >>> ids = stream(model, render_prompts(model, ["Hi!"]), each=lambda ids, _: said.append(ids), max_new_tokens=4)
    >>> [len(so_far[0]) for so_far in said], len(ids[0]) <= 4
    ([0, 1, 2, 3], True)

    each: called before each token, with the ids written so far [row, token] and the scores of the next one; what it
    raises ends the writing. begun: ids that an answer begins with, which count as generated by steering, and are
    returned, too. reads: functions at sites (`emolab.models.at_sites`), before what steering does there. Raises
    EmolabError as `generate`.
    """
    begun = [[]] * len(prompts) if begun is None else begun
    rows = per_row(model, steering, len(prompts))
    ids = write_batch(model, prompts, rows, max_new_tokens, writing, begun=begun, reads=reads, each=each)
    return [[*before, *row] for before, row in zip(begun, cut(model, ids), strict=True)]


def go_on(
    model: Model,
    prompt: str,
    ids: list[int],
    *,
    steering: Steering | None = None,
    max_new_tokens: int = 80,
    writing: Writing = Writing(),
) -> str:
    """The answer to a complete prompt that begins with these ids: another word, and what the model makes of it.

    >>> go_on(model, prompt, model.tokenizer("No,").input_ids, steering=joy)                # doctest: +SKIP
    """
    (written,) = stream(
        model, [prompt], each=lambda ids, scores: None, steering=[steering], begun=[ids],
        max_new_tokens=max_new_tokens, writing=writing,
    )  # fmt: skip
    return model.tokenizer.decode(written, skip_special_tokens=True).strip()


def generation_config(model: Model, max_new_tokens: int, writing: Writing) -> GenerationConfig:
    """What transformers is told; the repetition penalty is applied by `decoding.write`."""
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=model.eos_ids or None,
        pad_token_id=model.tokenizer.pad_token_id,
        do_sample=not writing.greedy,
    )
    if writing.forbidden:
        spelt = [form for word in writing.forbidden for form in (word, word.capitalize(), word.upper())]
        config.bad_words_ids = text_ids(model, [start + form for form in dict.fromkeys(spelt) for start in ("", " ")])
    if not writing.greedy:
        config.temperature = writing.temperature
        config.top_p = writing.top_p
        config.top_k = 0
    return config


def per_row(model: Model, steering: Any, n: int) -> list[Steering | None]:
    """One entry per row, or none at all where nothing is steered."""
    if isinstance(steering, list | tuple) and len(steering) != n:
        raise EmolabError(f"{len(steering)} steerings for {n} prompts; expected one, or a list with one per prompt")
    rows = as_rows(model, steering)
    return rows * n if len(rows) == 1 else rows


def _plan(model: Model, prompts: list[str], batch_size: int | None, *, extra: int) -> list[list[int]]:
    lengths = [len(ids) + extra for ids in prompt_ids(model, prompts)]
    check_context(model, max(lengths))
    if bridge_has_hooks(model):  # they may be one per row: keep the given order
        lengths = [max(lengths)] * len(lengths)
    return plan_batches(model, lengths, batch_size, cached=True)


def edits_of(model: Model, steerings: list[Steering | None], batch: Batch, *, cached: bool) -> tuple[dict, bool]:
    """This batch's edits, and whether they go on the plain model (else on the bridge)."""
    if len({id(s) for s in steerings}) == 1:
        steerings = steerings[:1]  # one table for all rows
    prompts, roles = prompt_spans(batch), None
    if needs_roles(steerings):
        rows = zip(batch.input_ids.tolist(), prompts, strict=True)
        roles = token_roles(model, [ids[pad : pad + n] for ids, (pad, n) in rows])
    edits = build_edits(model, steerings, prompts, cached, roles)
    return edits, runs_plain(model, {site for site, _ in edits})


def prompt_spans(batch: Batch) -> list[tuple[int, int]]:
    """(padding, tokens of the prompt) of each row, as `PositionMask` takes them."""
    n_tokens = batch.attention_mask.sum(1)
    n_pads = batch.input_ids.shape[1] - n_tokens
    n_prompt = n_tokens - batch.response_mask.sum(1)
    return list(zip(n_pads.tolist(), n_prompt.tolist(), strict=True))


@contextlib.contextmanager
def _sampling(writing: Writing) -> Iterator[None]:
    """Sampled tokens are drawn from its seed; global random state is left as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()), enabled=not writing.greedy):
        if not writing.greedy:
            torch.manual_seed(writing.seed)
        yield


def decoded(model: Model, ids: Int[Tensor, "row token"]) -> list[str]:
    """The answers as texts, each up to its end-of-answer token and without outer white space."""
    return [text.strip() for text in model.tokenizer.batch_decode(cut(model, ids), skip_special_tokens=True)]


def cut(model: Model, ids: Int[Tensor, "row token"]) -> list[list[int]]:
    """The ids of each answer, up to its end-of-answer token."""
    ends = set(model.eos_ids)
    return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in ids.tolist()]
