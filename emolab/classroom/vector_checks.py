"""Checks for exercises 1 to 4: emotion vectors, cosines, shared and specific part, random directions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from emolab.classroom.attempt import Wrong, attempt, done, same, tensor


def _toy(*shape: int, seed: int = 0, shift: float = 0.5) -> Tensor:
    """Toy numbers of its own generator: a check must not depend on, or move, the student's random state."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift


def check_emotion_vector(emotion_vector: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`emotion_vector(emotional, neutral)`, both [query, layer, d_model] -> [layer, d_model]."""
    name = "emotion_vector"
    emotional, neutral = _toy(4, 3, 5, seed=1, shift=1.0), _toy(4, 3, 5, seed=2)
    difference = emotional - neutral
    expected = difference.mean(0)
    mistakes = {
        "the sign is turned round: this points from emotional to neutral. Subtract the neutral answers from the "
        "emotional ones.": -expected,
        "these are the emotional answers alone. What all answers have in common is still in there; subtract the "
        "neutral ones.": emotional.mean(0),
        "these are the neutral answers alone.": neutral.mean(0),
        "this is a sum over questions, not a mean: with twice as many questions the vector would be twice as long.":
            difference.sum(0),
        "the mean over questions is missing: there is still one difference a question.": difference,
        "the mean runs over layers. It should run over questions, the first axis: .mean(0).": difference.mean(1),
        "the mean runs over the model's dimensions. It should run over questions, the first axis: .mean(0).":
            difference.mean(2),
        "the mean runs over everything: .mean() without an axis gives one number.": difference.mean(),
        "the vectors have length 1. Keep their length: it says how far the emotion moves the model, and is the unit of "
        "the dose.": normalize(expected, dim=-1),
    }  # fmt: skip
    same(name, attempt(name, emotion_vector, emotional, neutral), expected, "layer d_model", mistakes)
    done(name, "A mean of differences between answers to the same questions, one vector a layer.")


def check_cosine(cosine: Callable[[Tensor], Tensor]) -> None:
    """`cosine(vectors)`, [emotion, d_model] -> [emotion, emotion]."""
    name = "cosine"
    v = _toy(3, 5, seed=3, shift=0.0) * torch.tensor([[0.5], [2.0], [10.0]])
    dots, length = v @ v.T, v.norm(dim=-1)
    expected = dots / length[:, None] / length
    half = "is divided by the length of one of its two vectors only. Divide by both."
    mistakes = {
        "these are dot products: long vectors get large numbers. Divide each by the lengths of both vectors.": dots,
        f"each row {half}": dots / length[:, None],
        f"each column {half}": dots / length,
        "divided by the squared lengths. Divide by the lengths, the square roots.":
            dots / (length[:, None] * length) ** 2,
        "these are cosine distances; a cosine is 1 where a vector meets itself.": 1 - expected,
        "the sign is lost. Opposite directions have cosine -1.": expected.abs(),
        "the vectors were brought to length 1 along the wrong axis. The length runs over d_model, the last axis.":
            normalize(v, dim=0) @ normalize(v, dim=0).T,
        "all vectors together were divided by one length. Each vector has its own: .norm(dim=-1, keepdim=True).":
            dots / v.norm() ** 2,
        "these are cosines between the model's dimensions. Multiply the other way round: unit @ unit.T.":
            normalize(v, dim=0).T @ normalize(v, dim=0),
        "each vector was compared with itself alone, and that is always 1. Every pair has a cosine.": torch.ones(3),
    }  # fmt: skip
    same(name, attempt(name, cosine, v), expected, "emotion emotion", mistakes)
    done(name, "1 on the diagonal, symmetric, and blind to length.")


def check_split(split: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """`split(vectors)`, [emotion, layer, d_model] -> shared [layer, d_model] and specific [emotion, layer, d_model]."""
    name = "split"
    v = _toy(4, 3, 5, seed=4)
    got = attempt(name, split, v)
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise Wrong(f"{name}: expected two tensors, `return shared, specific`; got {type(got).__name__}.")
    shared, specific = (tensor(name, x) for x in got)
    mean = v.mean(0)
    if shared.shape == v.shape and specific.shape in (mean.shape, (1, *mean.shape)):
        raise Wrong(f"{name}: the two are swapped; expected `return shared, specific`.")
    whats = {
        "the shared part still has an axis for emotions, of size 1. It belongs to all of them: take .mean(0) without "
        "keepdim.": mean[None],
        "the shared part is a sum over emotions; it should be their mean.": v.sum(0),
        "the shared part is a mean over layers. Every layer has its own; the mean runs over emotions, the first axis.":
            v.mean(1),
        "the shared part is one number, the mean of everything. The mean runs over emotions alone.": v.mean(),
        "the shared part is a median. Only the mean makes the specific parts sum to zero.": v.median(0).values,
    }  # fmt: skip
    same(name, shared, mean, "layer d_model", whats, what="shared part")
    unit = normalize(mean, dim=-1)
    whats = {
        "the specific part is still the whole vector. Subtract the shared part.": v,
        "the specific part has the wrong sign: it is the vector less the shared part, not the reverse.": mean - v,
        "the shared part was added, not subtracted.": v + mean,
        "the shared part's direction was projected out. That takes away all of it, from some emotions more than from "
        "others; then shared + specific does not give the vector back.": v - (v * unit).sum(-1, keepdim=True) * unit,
        "the specific parts have length 1. Keep their length: shared + specific should give the vector back.":
            normalize(v - mean, dim=-1),
    }  # fmt: skip
    same(name, specific, v - mean, "emotion layer d_model", whats, what="specific part")
    done(name, "shared + specific gives the vector back, and the specific parts sum to zero.")


def check_random_like(random_like: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    """`random_like(vector, generator)`, [layer, d_model] -> [layer, d_model]."""
    name = "random_like"
    v = _toy(3, 64, seed=5) * torch.tensor([[0.5], [2.0], [10.0]])

    def draw(seed: int) -> Tensor:
        return tensor(name, attempt(name, random_like, v, torch.Generator().manual_seed(seed)))

    state = torch.get_rng_state()
    got, again, other = draw(0), draw(0), draw(1)
    if got.shape != v.shape:
        raise Wrong(f"{name}: expected shape {tuple(v.shape)} = [layer, d_model], got {tuple(got.shape)}.")
    if not got.isfinite().all():
        raise Wrong(f"{name}: the result holds NaN or infinity; is something divided by zero?")
    unit = normalize(got, dim=-1)
    along = (unit * normalize(v.double(), dim=-1)).sum(-1).abs()
    if (along > 0.99).any():
        raise Wrong(f"{name}: this is still the vector's own direction. Draw a new one with torch.randn.")
    if not torch.equal(torch.get_rng_state(), state) or not torch.equal(got, again):
        raise Wrong(
            f"{name}: two calls with equally seeded generators must give the same numbers, and torch's global state "
            "must stay as it was. Pass the generator on: torch.randn(shape, generator=generator)."
        )
    if torch.equal(got, other):
        raise Wrong(f"{name}: other seeds give the same direction. Draw from the generator that you are given.")
    lengths, expected = got.norm(dim=-1), v.double().norm(dim=-1)
    raw = torch.randn(v.shape, generator=torch.Generator().manual_seed(0)).double()
    mistakes = {
        "the directions have length 1. Multiply each layer's by the length of the vector there.": torch.ones(3),
        "the length is squared.": expected**2,
        "these are raw random numbers: their length is about the square root of d_model, whatever the vector is. Bring "
        "each layer's to length 1 first, then to the vector's length.": raw.norm(dim=-1),
        "the random numbers were multiplied by the vector's length, but not divided by their own first.":
            raw.norm(dim=-1) * expected,
        "the length is right only for all layers together. Each layer has its own: .norm(dim=-1, keepdim=True).":
            raw.norm(dim=-1) / raw.norm() * v.double().norm(),
        "every layer has the same length, that of all layers together. Take .norm(dim=-1, keepdim=True).":
            v.double().norm().expand(3),
    }  # fmt: skip
    same(name, lengths, expected, "layer", mistakes, what="length of the direction")
    if (unit[0] @ unit[1]).abs() > 0.99:
        raise Wrong(f"{name}: all layers have the same direction. Draw numbers for each layer: [layer, d_model].")
    if (got >= 0).all():
        raise Wrong(
            f"{name}: all numbers are positive, as torch.rand draws them: the directions then lie in one corner of the "
            "space. torch.randn has no preferred direction."
        )
    done(name, "As long as the vector at every layer, and it points nowhere in particular.")
