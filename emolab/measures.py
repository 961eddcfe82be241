"""The runs of causal tests, and the two measures of their effect: emotion words as the model expects them, or a judge.

>>> from emolab.measures import Job, Words
>>> Words(emotion_tokens(model, responses))(model, HeadSpace(model, vectors), [Job(prompt, text, "joy")])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.activations import check_origin
from emolab.attribution import emotion_tokens, word_tokens
from emolab.cluster import run_chunks
from emolab.edits import Window
from emolab.emotions import NEUTRAL
from emolab.errors import EmolabError, need_number, need_table
from emolab.generation import forward, generate
from emolab.interventions import OPS, Change, HeadSpace, edited, head_edits
from emolab.judges import judges_of
from emolab.models import Model, encode, plan_batches
from emolab.progress import tqdm
from emolab.vectors import EmotionVectors


@dataclass(frozen=True)
class Job:
    """One run: after `prompt`, the model writes (judge) or reads `text` (words), with a change or none.

    source: with "patch", the prompt of the other run, which reads the same text.
    """

    prompt: str
    text: str
    emotion: str
    change: Change | None = None
    source: str | None = None


@dataclass
class Runs:
    """The runs of one test: what is changed, and the run that it is measured against."""

    test: str
    queries: list[str]
    rows: dict[tuple[str, str], tuple[str, str]]  # (query_id, condition) -> prompt, text

    def job(self, query: str, emotion: str, change: Change | None = None) -> Job:
        told, (neutral, text) = self.rows[query, emotion][0], self.rows[query, NEUTRAL]
        source = told if self.test == "patch" and change is not None else None
        return Job(told if self.test == "ablate" else neutral, text, emotion, change, source)

    def goal(self, query: str, emotion: str) -> Job:
        """The run at the other end: the other prompt."""
        told, (neutral, text) = self.rows[query, emotion][0], self.rows[query, NEUTRAL]
        return Job(neutral if self.test == "ablate" else told, text, emotion)


def setup(
    model: Model,
    vectors: EmotionVectors,
    responses: pd.DataFrame,
    *,
    test: str,
    judge: Any,
    words: Mapping[str, Sequence[str]] | None,
    n_queries: int,
    max_new_tokens: int,
    seed: int,
) -> tuple[HeadSpace, Words | Judged, Runs]:
    """What a causal test needs, checked; see `emolab.head_effects` for the arguments."""
    if test not in OPS:
        raise EmolabError(f"unknown test {test!r}; expected one of {', '.join(OPS)}")
    if test == "patch" and judge is not None:
        raise EmolabError("patching needs one text for both runs, so it has no judge; leave judge out to measure words")
    columns = ("query_id", "condition", "prompt", "text")
    need_number("n_queries", n_queries, 1, whole=True)
    judge = None if judge is None else judges_of(judge)[0]
    need_table(responses, columns, "emolab.collect_responses")
    check_origin(model, responses)
    if (responses["prompt"].fillna("") == "").all():
        raise EmolabError(
            "causal tests run prompts with and without instruction: responses from collect_responses, not from texts"
        )
    space = HeadSpace(model, vectors)
    if test == "steer" and any("ln1_post" in block._modules for block in model.bridge.blocks):
        raise EmolabError(f"{model.name!r} rescales attention before adding it, so a head has no fixed vector to add")
    wanted = {NEUTRAL, *vectors.emotions}
    rows = {
        (query, condition): (prompt, text)
        for query, condition, prompt, text in zip(*(responses[c] for c in columns), strict=True)
        if condition in wanted and len(text)
    }
    queries = [q for q in dict.fromkeys(responses["query_id"]) if all((q, c) in rows for c in wanted)]
    if not queries:
        raise EmolabError(
            f"no query has an answer under each of {', '.join(sorted(wanted))}; use collect_responses(pairing='all')"
        )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(queries))[:n_queries]
    queries = [queries[i] for i in sorted(chosen)]
    if judge is not None:
        return space, Judged(judge, max_new_tokens), Runs(test, queries, rows)
    tokens = emotion_tokens(model, responses) if words is None else word_tokens(model, dict(words))
    lost = [e for e in vectors.emotions if e not in tokens]
    if lost:
        raise EmolabError(f"words lack {', '.join(lost)}; give {{emotion: [words]}} for every emotion of the vectors")
    return space, Words(tokens), Runs(test, queries, rows)


def answer_z(model: Model, prompts: list[str], texts: list[str]) -> list[Float[Tensor, "layer answer head d_head"]]:
    """z of every head from the last prompt token to the end of the text, as the model reads it after its prompt."""
    out: list[Any] = [None] * len(prompts)
    for index in _plan(model, prompts, texts, None):
        batch = encode(model, [prompts[i] for i in index], [texts[i] for i in index])
        taken = {layer: _Take() for layer in range(model.n_layers)}
        with torch.inference_mode(), edited(model, taken) as runner:
            forward(model, runner, batch, 1)
        z = torch.stack([taken[layer].z for layer in range(model.n_layers)], 1)
        for row, i in enumerate(index):
            out[i] = z[row, :, -int(batch.response_mask[row].sum()) - 1 :].cpu()
    return out


class _Take:
    calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls, self.z = self.calls + 1, z
        return z


@dataclass
class Words:
    """Measure: the model's own probability of emotion words as it reads an answer, teacher forced.

    The value of a run is log(mean over the answer's tokens of the summed next-token probability of the emotion's word
    tokens): how many such words the model expects, in nats. tokens: {emotion: ids}, see `emotion_tokens`.
    """

    tokens: dict[str, list[int]]
    name = "words"

    def __call__(
        self, model: Model, space: HeadSpace, jobs: list[Job], batch_size=None, progress=False, client=None
    ) -> np.ndarray:
        pairs = list(dict.fromkeys((j.source, j.text) for j in jobs if j.source is not None))
        shared, plan = (_light(space, client), pairs, self.tokens), _batches(model, jobs, batch_size, texts=True)
        return np.array(_run(model, _expected, jobs, plan, shared, _with_sources, progress, client))


@dataclass
class Judged:
    """Measure: the judge's probability of the emotion in the text that the model writes (`emolab.Writing()`)."""

    judge: Any
    max_new_tokens: int = 80

    @property
    def name(self) -> str:
        return self.judge.name

    def __call__(
        self, model: Model, space: HeadSpace, jobs: list[Job], batch_size=None, progress=False, client=None
    ) -> np.ndarray:
        missing = {j.emotion for j in jobs} - set(self.judge.labels)
        if missing:
            raise EmolabError(f"judge {self.judge.name!r} knows no {', '.join(sorted(missing))}")
        shared, plan = (_light(space, client), self.max_new_tokens), _batches(model, jobs, batch_size, texts=False)
        texts = _run(model, _written, jobs, plan, shared, _with_space, progress, client)
        p = np.asarray(self.judge(texts))
        return p[np.arange(len(jobs)), [list(self.judge.labels).index(j.emotion) for j in jobs]]


def _run(model, function, jobs, plan, shared, prepare, progress, client) -> list:
    """function of every job, by the batches of the plan."""
    out: list[Any] = [None] * len(jobs)
    chunks = [([jobs[i] for i in index],) for index in plan]
    cluster = {"shared": shared, "prepare": prepare, "client": client, "name": "heads"}
    with tqdm(total=len(jobs), disable=not progress, desc="heads", unit="run") as bar:
        for found in run_chunks(model, function, chunks, **cluster):
            for number, values in found.items():
                for i, value in zip(plan[number], values, strict=True):
                    out[i] = value
                bar.update(len(plan[number]))
    return out


def _light(space: HeadSpace, client: Any) -> HeadSpace | EmotionVectors:
    """What travels to workers: a head space is made again there from its vectors, and is larger than they are."""
    return space if client is None else space.vectors


def _with_space(model: Model, shared: tuple) -> tuple:
    space, *rest = shared
    return space if isinstance(space, HeadSpace) else HeadSpace(model, space), *rest


def _with_sources(model: Model, shared: tuple) -> tuple:
    space, pairs, tokens = _with_space(model, shared)
    sources = dict(zip(pairs, answer_z(model, *map(list, zip(*pairs, strict=True))), strict=True)) if pairs else {}
    return space, sources, tokens


def _expected(model: Model, shared: tuple, rows: list[Job]) -> list[float]:
    """What `Words` measures of each job of a batch."""
    space, sources, tokens = shared
    batch = encode(model, [j.prompt for j in rows], [j.text for j in rows])
    own = batch.attention_mask.sum(1)
    pads, answer = batch.input_ids.shape[1] - own, batch.response_mask.sum(1)
    window = Window(["generated"], list(zip(pads.tolist(), (own - answer).tolist(), strict=True)))
    edits = head_edits(space, [j.change for j in rows], window, [sources.get((j.source, j.text)) for j in rows])
    keep = int(answer.max()) + 1
    with torch.inference_mode(), edited(model, edits) as runner:
        p = forward(model, runner, batch, keep)[:, :-1].float().softmax(-1)
    shares = [
        p[row, p.shape[1] - int(answer[row]) :, tokens[job.emotion]].double().sum(-1).mean()
        for row, job in enumerate(rows)
    ]
    return [float(share.clamp_min(1e-30).log()) for share in shares]


def _written(model: Model, shared: tuple, rows: list[Job]) -> list[str]:
    """The text of each job of a batch."""
    space, max_new_tokens = shared
    edits = head_edits(space, [j.change for j in rows], Window(["generated"]))
    # Rows come by length, so that `generate` keeps their order; without its own batches, a row meets its edit.
    options = {"max_new_tokens": max_new_tokens, "batch_size": len(rows)}
    with edited(model, edits):
        return generate(model, [j.prompt for j in rows], raw=True, **options)


def _plan(model: Model, prompts: list[str], texts: list[str] | None, batch_size: int | None) -> list[list[int]]:
    lengths = [len(ids) for ids in model.tokenizer(prompts, add_special_tokens=False).input_ids]
    if texts is not None:
        more = model.tokenizer(texts, add_special_tokens=False).input_ids
        lengths = [n + len(ids) for n, ids in zip(lengths, more, strict=True)]
    return plan_batches(model, lengths, batch_size, logits=texts is not None, cached=texts is None)


def _batches(model: Model, jobs: list[Job], batch_size: int | None, *, texts: bool) -> list[list[int]]:
    """Job numbers in batches by length; single-head jobs of one layer together, so that few layers carry hooks."""
    groups: dict[int, list[int]] = {}
    for i, job in enumerate(jobs):
        layers = {layer for layer, _ in job.change.heads} if job.change else set()
        groups.setdefault(layers.pop() if len(layers) == 1 else -1, []).append(i)
    found = []
    for group in groups.values():
        prompts = [jobs[i].prompt for i in group]
        for index in _plan(model, prompts, [jobs[i].text for i in group] if texts else None, batch_size):
            found.append([group[k] for k in index])
    return found
