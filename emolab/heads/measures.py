"""Runs of a model with heads or neurons changed, and two measures: the words that it expects, or what a judge reads.

`WordProbability` also gives slopes: by how much, to first order, the change to every single head would move a run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emolab.answers.generation import decoded, prompt_spans, write_edited
from emolab.answers.jobs import chunks, run_jobs
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.heads.rereading import Reading, WholePasses, rereads
from emolab.models.finite import need_finite
from emolab.models.hooks import forward
from emolab.models.memory import halving
from emolab.models.model import Model
from emolab.models.prompts import encode, plan_batches, prompt_ids
from emolab.models.sites import site_layers
from emolab.models.workers import on_cluster
from emolab.steering.edits import LayerEdit, hooked
from emolab.steering.head_edits import Change, HeadSpace
from emolab.steering.positions import PositionMask
from emolab.steering.shifts import ShiftSpace

Space = HeadSpace | ShiftSpace  # what is changed: it makes edits of changes
READ = 32  # tokens of an answer that are read: what comes later says little more, and costs as much
_CHUNK = 64  # runs of one text that go to a worker together
_BAND = 512  # tokens of a batch on a CPU: fast enough for it, and heads of few layers, which all start at the lowest


@dataclass(frozen=True)
class PatchRun:
    """One run: after `prompt`, the model writes (judge) or reads `text` (words), with a change or none.

    source: with "patch", the prompt of the other run, which reads the same text.
    """

    prompt: str
    text: str
    emotion: str
    change: Change | None = None
    source: str | None = None


@dataclass
class WordProbability:
    """Measure: the model's own probability of emotion words as it reads an answer, teacher forced.

    >>> WordProbability(emotion_tokens(model, responses))(HeadSpace(model, vectors), [PatchRun(prompt, text, "joy")])

    The value of a run is log(mean over the answer's tokens of the summed next-token probability of the emotion's word
    tokens): how many such words the model expects, in nats. tokens: {emotion: ids}, see `emotion_tokens`.
    """

    tokens: dict[str, list[int]]
    batch_size: int | None = None
    name = "words"

    def __call__(self, space: Space, runs: Sequence[PatchRun]) -> Float[np.ndarray, " run"]:
        plan = _by_text(runs, lambda run: (run.prompt, run.text, run.emotion))
        shared = (_light(space), self, runs[0])
        return np.array(run_jobs(space.model, _expected, runs, plan, shared=shared, prepare=_Readings, name="heads"))

    def slopes(self, space: HeadSpace, runs: Sequence[PatchRun]) -> Float[np.ndarray, "run layer head"]:
        """The first-order effect of each run's change, by head: gradient of this measure at z times the change of z.

        Of the run without the change, whose text goes through the model once, forward and, for each emotion, backward.
        One text at a time, so that what gradients need is held of one text alone.
        """
        model = space.model
        if any(p.is_inference() for p in model.hf.parameters()):
            raise EmolabError(
                f"{model.name!r} was loaded inside torch.inference_mode() and takes no gradients, by which heads are "
                "screened; load it outside, or test all heads (screen=None, with a judge)"
            )
        plan = _by_text(runs, lambda run: (run.prompt, run.text))
        shared = (_light(space), self, runs[0])
        return np.stack(run_jobs(model, _slopes, runs, plan, shared=shared, prepare=_Readings, name="attribution"))


@dataclass
class JudgedText:
    """Measure: the judge's probability of the emotion in the text that the model writes."""

    judge: Any
    max_new_tokens: int = 80
    writing: Writing = Writing()

    @property
    def name(self) -> str:
        return self.judge.name

    def __call__(self, space: Space, runs: Sequence[PatchRun]) -> Float[np.ndarray, " run"]:
        unknown = {run.emotion for run in runs} - set(self.judge.labels)
        if unknown:
            raise EmolabError(f"judge {self.judge.name!r} knows no {', '.join(sorted(unknown))}")
        plan = _by_length(space.model, runs, self.writing.batch_size)
        shared = (_light(space), self.max_new_tokens, self.writing)
        texts = run_jobs(space.model, _written, runs, plan, shared=shared, prepare=_with_space, name="heads")
        labels = list(self.judge.labels)
        return np.asarray(self.judge(texts))[np.arange(len(runs)), [labels.index(run.emotion) for run in runs]]


def _light(space: Space) -> Space | tuple[type[Space], tuple]:
    """What travels to workers: what a space is made of there, beside their model; of heads that is the smaller part."""
    return (type(space), space.made_of) if on_cluster() else space


def _with_space(model: Model, shared: tuple) -> tuple:
    space, *rest = shared
    if isinstance(space, tuple):
        kind, made_of = space
        space = kind(model, *made_of)
    return space, *rest


class _Readings:
    """What runs by words share in a process; the newest reading is kept, since the next runs are often of its text."""

    def __init__(self, model: Model, shared: tuple[Any, WordProbability, PatchRun]) -> None:
        self.space, self.measure, run = _with_space(model, shared)
        self.rereads = rereads(model, run.prompt, run.text, self.space.sites)
        self.newest: Reading | None = None

    def of(self, run: PatchRun) -> Reading:
        if self.newest is None or (self.newest.prompt, self.newest.text) != (run.prompt, run.text):
            self.newest = Reading(self.space.model, run.prompt, run.text)
        return self.newest


def _expected(model: Model, readings: _Readings, runs: list[PatchRun]) -> list[float]:
    """What `WordProbability` measures of runs that read one text behind one prompt."""
    first, tokens = runs[0], readings.measure.tokens
    sources = _sources(model, runs)
    if readings.rereads and any(run.change for run in runs):
        reading = readings.of(first)
    else:  # a run alone costs no less by a reading
        reading = WholePasses(model, first.prompt, first.text)

    def measured(rows: list[int]) -> list[float]:
        batch = [runs[i] for i in rows]
        given = [sources[run.source][:, : reading.edited] if run.source else None for run in batch]
        with torch.inference_mode():
            edits = readings.space.edits([run.change for run in batch], reading.mask(), given)
            p = reading.logits(edits, len(batch)).softmax(-1)
            return [float(_log_share(row, tokens[run.emotion])) for row, run in zip(p, batch, strict=True)]

    bands = _bands(model, reading, len(runs), readings.measure.batch_size)
    values = [value for _, of_band in halving(measured, bands) for value in of_band]  # in the order of the runs
    need_finite(model, np.array(values), "the probabilities", prompt=first.prompt)
    return values


def _slopes(model: Model, readings: _Readings, runs: list[PatchRun]) -> list[Float[np.ndarray, "layer head"]]:
    """`WordProbability.slopes` of runs that read one text behind one prompt."""
    space, first = readings.space, runs[0]
    sources = _sources(model, runs)
    new = Reading if readings.rereads else WholePasses  # a kept reading may be of tensors that take no gradients

    def sloped(_: list[int]) -> list[np.ndarray]:
        kept = {("head", layer): _KeptZ() for layer in space.layers}
        # Whatever the user has switched off: gradients of z are asked for, of no weight.
        with torch.inference_mode(False), torch.enable_grad():
            reading = new(model, first.prompt, first.text)
            p = reading.logits(kept, start=0)[0].softmax(-1)
            z = [kept["head", layer].z for layer in space.layers]
            values = {run.emotion: _log_share(p, readings.measure.tokens[run.emotion]) for run in runs}
            products = []
            for i, run in enumerate(runs):
                slopes = torch.autograd.grad(values[run.emotion], z, retain_graph=i + 1 < len(runs))
                products.append(_products(space, run, reading, z, slopes, sources.get(run.source)))
        return products

    ((_, products),) = halving(sloped, [[0]])
    need_finite(model, [product[space.layers] for product in products], "the gradients", prompt=first.prompt)
    return products


@torch.no_grad()
def _products(
    space: HeadSpace,
    run: PatchRun,
    reading: WholePasses,
    z: list[Tensor],
    slopes: Sequence[Tensor],
    source: Tensor | None,
) -> Float[np.ndarray, "layer head"]:
    """Slope times change, summed over the positions before the text's tokens; NaN where a layer has no heads."""
    edits = space.edits([run.change], PositionMask(["all"]), [None if source is None else source[:, : reading.n]])
    products = np.full(space.W_O.shape[:2], np.nan)
    products[space.layers] = 0  # where the run changes nothing
    for layer, x, slope in zip(space.layers, z, slopes, strict=True):
        if ("head", layer) in edits:
            x, slope = x[:, reading.positions].float(), slope[:, reading.positions].float()
            products[layer] = (slope * (edits["head", layer](x) - x)).sum((0, 1, 3)).cpu().double().numpy()
    return products


def _log_share(p: Float[Tensor, "token vocab"], tokens: list[int]) -> Tensor:
    return p[:, tokens].double().sum(-1).mean().clamp_min(1e-30).log()


def _sources(model: Model, runs: list[PatchRun]) -> dict[str | None, Tensor]:
    prompts = list(dict.fromkeys(run.source for run in runs if run.source is not None))
    return dict(zip(prompts, answer_z(model, prompts, runs[0].text), strict=True)) if prompts else {}


def answer_z(model: Model, prompts: list[str], text: str) -> Float[Tensor, "prompt layer answer head d_head"]:
    """z of every head from the last prompt token to the end of the text, as the model reads it after each prompt."""
    batch = encode(model, prompts, [text] * len(prompts))
    kept = {("head", layer): _KeptZ() for layer in site_layers(model, "head")}
    with torch.inference_mode(), hooked(model, kept) as runner:
        forward(model, runner, batch, 1)
    n = int(batch.response_mask[0].sum()) + 1
    answers = {layer: keep.z[:, -n:].cpu() for (_, layer), keep in kept.items()}
    nothing = torch.zeros_like(next(iter(answers.values())))  # of a layer without heads
    return torch.stack([answers.get(layer, nothing) for layer in range(model.n_layers)], 1)


class _KeptZ(LayerEdit):
    """An edit that changes nothing and keeps z, where gradients are on with its place in their graph."""

    def __init__(self) -> None:
        super().__init__(1, PositionMask(["all"]))

    def __call__(self, z: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not z.requires_grad:
            z = z.detach().requires_grad_()
        self.calls += 1
        self.z = z
        return z


def _written(model: Model, shared: tuple[Space, int, Writing], runs: list[PatchRun]) -> list[str]:
    """The text of each run of a batch."""
    space, max_new_tokens, writing = shared

    def texts(rows: list[int]) -> list[str]:
        batch = encode(model, [runs[i].prompt for i in rows])
        mask = PositionMask(["generated"], prompt_spans(batch), cached=True)
        edits = space.edits([runs[i].change for i in rows], mask)
        return decoded(model, write_edited(model, batch, edits, max_new_tokens, writing))

    batches = halving(texts, [list(range(len(runs)))])
    return [text for _, batch in batches for text in batch]


def _by_text(runs: Sequence[PatchRun], text_of: Callable[[PatchRun], Hashable]) -> list[list[int]]:
    """Run numbers by what is read, some dozens at a time, from the lowest changed layer up."""
    groups: dict[Hashable, list[int]] = {}
    for i, run in enumerate(runs):
        groups.setdefault(text_of(run), []).append(i)
    for group in groups.values():
        group.sort(key=lambda i: _lowest(runs[i]))
    return [[group[i] for i in chunk] for group in groups.values() for chunk in chunks(len(group), _CHUNK)]


def _lowest(run: PatchRun) -> int:
    return min((layer for layer, _ in run.change.where), default=0) if run.change else 0


def _bands(model: Model, reading: WholePasses, n_runs: int, batch_size: int | None) -> list[list[int]]:
    """Runs in batches that fit; on a CPU so few that their lowest layers are near, since all start at the lowest."""
    size = len(plan_batches(model, [reading.start + reading.n + 1] * n_runs, batch_size, logits=True)[0])
    if batch_size is None and isinstance(reading, Reading) and model.device.type == "cpu":
        size = min(size, max(1, _BAND // reading.n))
    return [list(band) for band in chunks(n_runs, size)]


def _by_length(model: Model, runs: Sequence[PatchRun], batch_size: int | None) -> list[list[int]]:
    """Run numbers in batches by length; single-head runs of one layer together, so that few layers carry hooks."""
    lengths = [len(ids) for ids in prompt_ids(model, [run.prompt for run in runs])]
    groups: dict[int, list[int]] = {}
    for i, run in enumerate(runs):
        layers = {layer for layer, _ in run.change.where} if run.change else set()
        groups.setdefault(layers.pop() if len(layers) == 1 else -1, []).append(i)
    return [
        [group[k] for k in batch]
        for group in groups.values()
        for batch in plan_batches(model, [lengths[i] for i in group], batch_size, cached=True)
    ]
