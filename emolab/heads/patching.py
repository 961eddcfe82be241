"""The runs of causal tests, and the two measures of their effect: emotion words as the model expects them, or a judge.

`Words` also gives each run's slopes: by how much, to first order, the change to every single head would move it.

>>> from emolab.heads.patching import Job, Words
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

from emolab.answers.generation import generate
from emolab.base.errors import EmolabError, need_number, need_table
from emolab.base.labels import NEUTRAL
from emolab.base.progress import progress_bar
from emolab.heads.attribution import emotion_tokens, word_tokens
from emolab.heads.rereading import Reading, rereads
from emolab.judges.judges import judges_of
from emolab.models.hooks import forward
from emolab.models.memory import halving
from emolab.models.model import Model
from emolab.models.prompts import encode, plan_batches
from emolab.models.sites import site_layers
from emolab.models.workers import on_cluster, run_chunks
from emolab.steering.edits import Window
from emolab.steering.head_edits import OPS, Change, HeadSpace, edited, head_edits
from emolab.vectors.activations import check_origin
from emolab.vectors.vectors import EmotionVectors

READ = 32  # tokens of an answer that are read: what comes later says little more, and costs as much
_CHUNK = 64  # runs of one text that go to a worker together
_BAND = 512  # tokens of a batch on a CPU: fast enough for it, and heads of few layers, which all start at the lowest


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
    others: list[str]  # as many again, on which heads are chosen; empty where there are not so many
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
        if condition in wanted and prompt and model.tokenizer(text, add_special_tokens=False).input_ids
    }
    queries = [q for q in dict.fromkeys(responses["query_id"]) if all((q, c) in rows for c in wanted)]
    if not queries:
        raise EmolabError(
            f"no query has an answer under each of {', '.join(sorted(wanted))}; use collect_responses(pairing='all')"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(queries))
    parts = (drawn[:n_queries], drawn[n_queries : 2 * n_queries])
    tested, others = ([queries[i] for i in sorted(part)] for part in parts)
    for query in (*tested, *others):
        prompt, text = rows[query, NEUTRAL]
        rows[query, NEUTRAL] = prompt, _beginning(model, text)
    runs = Runs(test, tested, others if len(others) == n_queries else [], rows)
    if judge is not None:
        return space, Judged(judge, max_new_tokens), runs
    return space, words_of(model, vectors, responses, words), runs


def words_of(
    model: Model, vectors: EmotionVectors, responses: pd.DataFrame, words: Mapping[str, Sequence[str]] | None
) -> Words:
    """The measure by words: the given ones, or those typical of each emotion in the responses."""
    tokens = emotion_tokens(model, responses) if words is None else word_tokens(model, dict(words))
    lost = [e for e in vectors.emotions if e not in tokens]
    if lost:
        raise EmolabError(f"words lack {', '.join(lost)}; give {{emotion: [words]}} for every emotion of the vectors")
    return Words(tokens)


def _beginning(model: Model, text: str) -> str:
    """The part of an answer that is read."""
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    return text if len(ids) <= READ else model.tokenizer.decode(ids[:READ]).rstrip("\ufffd")  # half a character


def answer_z(model: Model, prompts: list[str], texts: list[str]) -> list[Float[Tensor, "layer answer head d_head"]]:
    """z of every head from the last prompt token to the end of the text, as the model reads it after its prompt."""
    out: list[Any] = [None] * len(prompts)
    for index in _plan(model, prompts, texts, None):
        batch = encode(model, [prompts[i] for i in index], [texts[i] for i in index])
        taken = {layer: _Take() for layer in site_layers(model, "head")}
        with torch.inference_mode(), edited(model, taken) as runner:
            forward(model, runner, batch, 1)
        some = next(iter(taken.values())).z  # of a layer without heads, zero
        layers = [taken[layer].z if layer in taken else torch.zeros_like(some) for layer in range(model.n_layers)]
        z = torch.stack([x.cpu() for x in layers], 1)
        for row, i in enumerate(index):
            out[i] = z[row, :, -int(batch.response_mask[row].sum()) - 1 :].clone()
    return out


class _Take:
    """Keeps z, where gradients are on with its place in their graph."""

    calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not z.requires_grad:
            z = z.detach().requires_grad_()
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

    def __call__(self, model: Model, space: HeadSpace, jobs: list[Job], batch_size=None) -> np.ndarray:
        shared, plan = (_light(space), self.tokens, jobs[0], batch_size), _by_text(jobs)
        return np.array(_run(model, _expected, jobs, plan, shared, _with_reading, "heads"))

    def slopes(self, model: Model, space: HeadSpace, jobs: list[Job]) -> Float[np.ndarray, "job layer head"]:
        """The first-order effect of each job's change, by head: gradient of this measure at z times the change of z.

        Of the run without the change, whose text goes through the model once, forward and, for each emotion, backward.
        One text at a time, so that what gradients need is held of one text alone.
        """
        if any(p.is_inference() for p in model.hf.parameters()):
            raise EmolabError(
                f"{model.name!r} was loaded inside torch.inference_mode() and takes no gradients, by which heads are "
                "screened; load it outside, or test all heads (screen=None, with a judge)"
            )
        shared, plan = (_light(space), self.tokens, jobs[0], None), _by_text(jobs, emotions_apart=False)
        return np.stack(_run(model, _slopes, jobs, plan, shared, _with_reading, "attribution"))


@dataclass
class Judged:
    """Measure: the judge's probability of the emotion in the text that the model writes (`emolab.Writing()`)."""

    judge: Any
    max_new_tokens: int = 80

    @property
    def name(self) -> str:
        return self.judge.name

    def __call__(self, model: Model, space: HeadSpace, jobs: list[Job], batch_size=None) -> np.ndarray:
        missing = {j.emotion for j in jobs} - set(self.judge.labels)
        if missing:
            raise EmolabError(f"judge {self.judge.name!r} knows no {', '.join(sorted(missing))}")
        shared, plan = (_light(space), self.max_new_tokens), _batches(model, jobs, batch_size)
        texts = _run(model, _written, jobs, plan, shared, _with_space, "heads")
        p = np.asarray(self.judge(texts))
        return p[np.arange(len(jobs)), [list(self.judge.labels).index(j.emotion) for j in jobs]]


def _run(model, function, jobs, plan, shared, prepare, name) -> list:
    """function of every job, by the batches of the plan."""
    out: list[Any] = [None] * len(jobs)
    chunks = [([jobs[i] for i in index],) for index in plan]
    with progress_bar(name, len(jobs), unit="run") as bar:
        for found in run_chunks(model, function, chunks, shared=shared, prepare=prepare, name=name):
            for number, values in found.items():
                for i, value in zip(plan[number], values, strict=True):
                    out[i] = value
                bar.update(len(plan[number]))
    return out


def _light(space: HeadSpace) -> HeadSpace | EmotionVectors:
    """What travels to workers: a head space is made again there from its vectors, and is larger than they are."""
    return space.vectors if on_cluster() else space


def _with_space(model: Model, shared: tuple) -> tuple:
    space, *rest = shared
    return space if isinstance(space, HeadSpace) else HeadSpace(model, space), *rest


@dataclass
class _Held:
    """What the runs of one call share in a process."""

    space: HeadSpace
    tokens: dict[str, list[int]]
    reread: bool
    batch_size: int | None
    reading: Reading | None = None

    def of(self, job: Job) -> Reading:
        """The reading of this job's text; kept for the next jobs, which are often of the same one."""
        if self.reading is None or (self.reading.prompt, self.reading.text) != (job.prompt, job.text):
            self.reading = Reading(self.space.model, job.prompt, job.text)
        return self.reading


def _with_reading(model: Model, shared: tuple) -> _Held:
    space, tokens, job, batch_size = _with_space(model, shared)
    return _Held(space, tokens, rereads(model, job.prompt, job.text), batch_size)


def _by_text(jobs: list[Job], emotions_apart: bool = True) -> list[list[int]]:
    """Job numbers by what is read, some dozens at a time, from the lowest changed layer up."""
    groups: dict[tuple, list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault((job.prompt, job.text, job.emotion if emotions_apart else ""), []).append(i)
    found = []
    for group in groups.values():
        group.sort(key=lambda i: _lowest(jobs[i]))
        found += [group[i : i + _CHUNK] for i in range(0, len(group), _CHUNK)]
    return found


def _lowest(job: Job) -> int:
    return min((layer for layer, _ in job.change.heads), default=0) if job.change else 0


def _expected(model: Model, held: _Held, jobs: list[Job]) -> list[float]:
    """What `Words` measures of jobs that read one text behind one prompt."""
    space, tokens = held.space, held.tokens
    sources = _sources(model, jobs)
    reading = held.of(jobs[0]) if held.reread and any(job.change for job in jobs) else None

    def measured(rows: list[int]) -> list[float]:
        some = [jobs[i] for i in rows]
        changes = [job.change for job in some]
        with torch.inference_mode():
            if reading is None:
                p = _whole(model, space, some, [sources.get(job.source) for job in some])
            else:
                given = [sources[job.source][:, : reading.n] if job.source else None for job in some]
                edits = head_edits(space, changes, Window(["all"]), given)
                p = reading.logits(edits, len(some)).softmax(-1)
            return [float(_log_share(row, tokens[job.emotion])) for row, job in zip(p, some, strict=True)]

    values = [0.0] * len(jobs)
    for rows, found in halving(measured, _bands(model, jobs, reading, held.batch_size)):
        for i, value in zip(rows, found, strict=True):
            values[i] = value
    return values


def _whole(model: Model, space: HeadSpace, jobs: list[Job], sources: list[Tensor | None]) -> Tensor:
    """Next-token probabilities before each token of the text, from one pass over prompt and text."""
    batch = encode(model, [job.prompt for job in jobs], [job.text for job in jobs])
    n, size = int(batch.response_mask[0].sum()), batch.input_ids.shape[1]
    edits = head_edits(space, [job.change for job in jobs], Window(["generated"], [(0, size - n)] * len(jobs)), sources)
    with edited(model, edits) as runner:
        return forward(model, runner, batch, n + 1)[:, :-1].float().softmax(-1)


def _log_share(p: Float[Tensor, "token vocab"], tokens: list[int]) -> Tensor:
    return p[:, tokens].double().sum(-1).mean().clamp_min(1e-30).log()


def _sources(model: Model, jobs: list[Job]) -> dict[str | None, Tensor]:
    prompts = list(dict.fromkeys(job.source for job in jobs if job.source is not None))
    return dict(zip(prompts, answer_z(model, prompts, [jobs[0].text] * len(prompts)), strict=True)) if prompts else {}


def _bands(model: Model, jobs: list[Job], reading: Reading | None, batch_size: int | None) -> list[list[int]]:
    """Jobs in batches that fit; on a CPU so few that their lowest layers are near, since all start at the lowest."""
    size = len(model.tokenizer(jobs[0].prompt + jobs[0].text, add_special_tokens=False).input_ids) + 1
    plan = plan_batches(model, [size] * len(jobs), batch_size, logits=True)
    most = len(plan[0])
    if batch_size is None and reading is not None and model.device.type == "cpu":
        most = min(most, max(1, _BAND // reading.n))
    return [list(range(i, min(i + most, len(jobs)))) for i in range(0, len(jobs), most)]


def _slopes(model: Model, held: _Held, jobs: list[Job]) -> list[Float[np.ndarray, "layer head"]]:
    """`Words.slopes` of jobs that read one text behind one prompt."""
    space, tokens = held.space, held.tokens
    sources = _sources(model, jobs)
    found: list[np.ndarray] = []

    def sloped(_: list[int]) -> None:
        found.clear()
        taken = {layer: _Take() for layer in space.layers}
        # Whatever the user has switched off: gradients of z are asked for, of no weight.
        with torch.inference_mode(False), torch.enable_grad():
            if held.reread:
                p = Reading(model, jobs[0].prompt, jobs[0].text).logits(taken, start=0)[0].softmax(-1)
            else:
                batch = encode(model, [jobs[0].prompt], [jobs[0].text])
                n = int(batch.response_mask.sum())
                with edited(model, taken) as runner:
                    p = forward(model, runner, batch, n + 1)[0, :-1].float().softmax(-1)
            z = [taken[layer].z for layer in space.layers]
            values = {job.emotion: _log_share(p, tokens[job.emotion]) for job in jobs}
            for i, job in enumerate(jobs):
                slopes = torch.autograd.grad(values[job.emotion], z, retain_graph=i + 1 < len(jobs))
                found.append(_products(space, job, z, slopes, len(p), sources.get(job.source)))

    list(halving(sloped, [[0]]))
    return found


@torch.no_grad()
def _products(
    space: HeadSpace, job: Job, z: list[Tensor], slopes: Sequence[Tensor], n: int, source: Tensor | None
) -> Float[np.ndarray, "layer head"]:
    """Slope times change, summed over the n positions before the text's tokens; NaN where a layer has no heads."""
    edits = head_edits(space, [job.change], Window(["all"]), [source[:, :n] if source is not None else None])
    size = z[0].shape[1]
    at = slice(size - n - 1, size - 1) if size > n else slice(None)  # a whole pass goes on to the last token
    out = np.full(space.W_O.shape[:2], np.nan)
    out[space.layers] = 0  # where the job changes nothing
    for layer, x, slope in zip(space.layers, z, slopes, strict=True):
        if layer not in edits:
            continue
        x, slope = x[:, at].float(), slope[:, at].float()
        out[layer] = (slope * (edits[layer](x) - x)).sum((0, 1, 3)).cpu().double().numpy()
    return out


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


def _batches(model: Model, jobs: list[Job], batch_size: int | None) -> list[list[int]]:
    """Job numbers in batches by length; single-head jobs of one layer together, so that few layers carry hooks."""
    groups: dict[int, list[int]] = {}
    for i, job in enumerate(jobs):
        layers = {layer for layer, _ in job.change.heads} if job.change else set()
        groups.setdefault(layers.pop() if len(layers) == 1 else -1, []).append(i)
    found = []
    for group in groups.values():
        for index in _plan(model, [jobs[i].prompt for i in group], None, batch_size):
            found.append([group[k] for k in index])
    return found
