"""Checks for the eight exercises of notebook 07, and the functions that the notebook goes on with.

>>> check_cosine(lambda vectors: vectors @ vectors.T)            # doctest: +SKIP
Wrong: cosine: these are dot products: long vectors get large numbers. Divide by the lengths of both vectors.
>>> accepted(cosine)(vectors)      # with the student's function where its check passes, else with ours # doctest: +SKIP

A check tries a student's function on toy tensors, in less than a second. Where it is right, the check prints one line.
Otherwise it raises `Wrong`, which says what was expected and which common mistake the answer looks like, or
`Unfinished` where nothing is written yet; a notebook shows these words alone, without a stack trace.
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from functools import wraps
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from emolab.base.errors import EmolabError
from emolab.base.stats import interval

# ---------------------------------------------------------------- trying a function, and saying what is wrong


class Wrong(EmolabError):
    """A wrong answer: what was expected, and which mistake it looks like."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for this
        return str(self).splitlines()


class Unfinished(Wrong):
    """An exercise that still holds `raise NotImplementedError`."""


EXERCISES: dict[str, tuple[Callable, Callable, Callable]] = {}  # name: its check, the form of its answer, our function


def exercise(ours: Callable, form: Callable, lesson: str) -> Callable[[Callable], Callable[[Callable], None]]:
    """Makes a check of a function that compares answers: its errors name the exercise, and it prints the lesson.

    ours: the right function; form(answer, *given): the answer as it is asked for, from other ways of giving it.
    """

    def decorate(compare_answers: Callable[[Callable], None]) -> Callable[[Callable], None]:
        name = compare_answers.__name__.removeprefix("check_")

        @wraps(compare_answers)
        def check(attempt: Callable) -> None:
            try:
                if not callable(attempt):
                    raise Wrong(f"the check needs the function itself, without brackets: check_{name}({name})")
                compare_answers(careful(attempt, form))
            except Wrong as error:
                error.args = (f"{name}: {error}",)
                raise
            print(f"{name}: right. {lesson}")

        EXERCISES[name] = (check, form, ours)
        return check

    return decorate


def accepted(attempt: Callable) -> Callable:
    """The student's function where its check passes, else ours, so that an open exercise holds up nothing.

    >>> shared, specific = accepted(split)(vectors.get("resid"))     # doctest: +SKIP

    Arrays and lists come back as tensors. Raises Wrong for a function whose name is none of the exercises.
    """
    name = getattr(attempt, "__name__", repr(attempt))
    if name not in EXERCISES:
        raise Wrong(f"{name} is no exercise; expected a function that is called {', '.join(EXERCISES)}")
    check, form, ours = EXERCISES[name]
    try:
        with redirect_stdout(io.StringIO()):
            check(attempt)
    except Wrong:
        return careful(ours, form)
    return careful(attempt, form)


def careful(attempt: Callable, form: Callable) -> Callable:
    """The function, with its answer in the form asked for; Wrong where it stops or changes what it was given."""

    @wraps(attempt)
    def call(*given: Any) -> Any:
        before: list[Any] = deepcopy([x for x in given if isinstance(x, Tensor | pd.DataFrame)])
        try:
            answer = attempt(*given)
        except NotImplementedError:
            raise Unfinished(
                "nothing here yet. Replace `raise NotImplementedError` by your code, run that cell, then this one."
            ) from None
        except Exception as error:  # whatever a student's code may raise
            raise Wrong(
                f"your function stopped{line_of(attempt, error)} with {type(error).__name__}: {error}\n"
                f"It was called with {', '.join(map(described, given))}."
            ) from error
        if answer is None:
            raise Wrong("your function returns nothing. Is the last line a `return`?")
        after: list[Any] = [x for x in given if isinstance(x, Tensor | pd.DataFrame)]
        if not all(x.equal(y) if isinstance(x, Tensor) else x.equals(y) for x, y in zip(before, after, strict=True)):
            raise Wrong(
                "your function changed what it was given. Make a new tensor (x = x - y) instead of writing into "
                "the old one (x -= y): whoever called you still needs it."
            )
        return form(answer, *given)

    return call


def line_of(attempt: Callable, error: Exception) -> str:
    """Where in the student's own cell it happened."""
    code = getattr(attempt, "__code__", None)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    return f" in line {lines[-1]} of its cell" if lines else ""


def described(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)}"
    if isinstance(x, pd.DataFrame):
        return f"a table of {len(x)} rows with columns {', '.join(x.columns)}"
    return repr(x) if isinstance(x, str | int | float) else f"a {type(x).__name__}"


def as_tensor(answer: Any, *given: Any) -> Tensor:
    """The answer as float64, whether it came as a tensor, an array or a list."""
    try:
        return torch.as_tensor(answer).detach().double()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"the result is a {type(answer).__name__}; expected a tensor.") from None


def as_numbers(order: str) -> Callable[..., list[float]]:
    """A form: so many numbers, in this order."""

    def form(answer: Any, *given: Any) -> list[float]:
        try:
            numbers = [float(x) for x in answer]
        except (TypeError, ValueError, RuntimeError):
            numbers = []
        if len(numbers) != len(order.split(", ")):
            raise Wrong(f"expected {len(order.split(', '))} numbers, `return {order}`; got {answer!r:.80}.")
        return numbers

    return form


def compare(
    answer: Any, expected: Any, axes: str, mistakes: Mapping[str, Any], *, part: str = "result", within: float = 1e-4
) -> None:
    """Nothing where the answer is the expected tensor [axes]; else Wrong, with the first mistake that it looks like.

    >>> compare(dots, cosines, "emotion, emotion", {"these are dot products": dots})      # doctest: +SKIP
    Wrong: these are dot products
    """
    found, wanted = as_tensor(answer), as_tensor(expected)

    def is_near(value: Tensor) -> bool:
        return found.shape == value.shape and torch.allclose(found, value, rtol=within, atol=within)

    if is_near(wanted):
        return
    shape = f"Expected shape {tuple(wanted.shape)} = [{axes}]"
    for words, value in mistakes.items():
        if is_near(as_tensor(value)):
            raise Wrong(words if found.shape == wanted.shape else f"{words}\n{shape}, got {tuple(found.shape)}.")
    if found.shape != wanted.shape:
        raise Wrong(f"the {part} has another shape than it should.\n{shape}, got {tuple(found.shape)}.")
    if found.isnan().any():
        raise Wrong(f"the {part} holds NaN, which comes from a division by zero. {shape}, without NaN.")
    index = tuple(int(i) for i in torch.unravel_index((found - wanted).abs().argmax(), wanted.shape))
    raise Wrong(
        f"the shape is right, the numbers are not: {part}{f' at {list(index)}' if index else ''} should be "
        f"{wanted[index]:.4g}, and is {found[index]:.4g}. Work the toy case out by hand, or open a hint."
    )


def toy(*shape: int, seed: int, shift: float = 0.5) -> Tensor:
    """Toy numbers of their own generator: a check must not depend on, or move, the student's random state."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift


# ---------------------------------------------------------------- 1 to 4: vectors


def our_emotion_vector(emotional: Tensor, neutral: Tensor) -> Tensor:
    return (emotional - neutral).mean(0)


@exercise(
    our_emotion_vector, as_tensor, "A mean of differences between answers to the same questions, one vector a layer."
)
def check_emotion_vector(attempt: Callable) -> None:
    """`emotion_vector(emotional, neutral)`, both [query, layer, d_model] -> [layer, d_model]."""
    emotional, neutral = toy(4, 3, 5, seed=1, shift=1.0), toy(4, 3, 5, seed=2)
    difference = emotional - neutral
    expected = our_emotion_vector(emotional, neutral)
    mistakes = {
        "the sign is turned round. Subtract the neutral answers from the emotional ones.": -expected,
        "these are the emotional answers alone. What all answers share is still in there; subtract the neutral ones.":
            emotional.mean(0),
        "these are the neutral answers alone.": neutral.mean(0),
        "this is a sum over questions, not a mean: with more questions the vector would be longer.": difference.sum(0),
        "the mean over questions is missing: there is still one difference per question.": difference,
        "the mean runs over layers. It should run over questions, the first axis: .mean(0).": difference.mean(1),
        "the mean runs over the model's dimensions. It should run over questions: .mean(0).": difference.mean(2),
        "the mean runs over everything: .mean() without an axis gives one number.": difference.mean(),
        "the vectors have length 1. Keep their length: it says how far the emotion moves the model.":
            normalize(expected, dim=-1),
    }  # fmt: skip
    compare(attempt(emotional, neutral), expected, "layer, d_model", mistakes)


def our_cosine(vectors: Tensor) -> Tensor:
    unit = normalize(vectors, dim=-1)
    return unit @ unit.T


@exercise(our_cosine, as_tensor, "1 on the diagonal, symmetric, and blind to length.")
def check_cosine(attempt: Callable) -> None:
    """`cosine(vectors)`, [emotion, d_model] -> [emotion, emotion]."""
    vectors = toy(3, 5, seed=3, shift=0.0) * torch.tensor([[0.5], [2.0], [10.0]])
    expected = our_cosine(vectors)
    dots = vectors @ vectors.T
    length = vectors.norm(dim=-1)
    across = normalize(vectors, dim=0)
    mistakes = {
        "these are dot products: long vectors get large numbers. Divide by the lengths of both vectors.": dots,
        "each row is divided by the length of one of its two vectors only. Divide by both.": dots / length[:, None],
        "each column is divided by the length of one of its two vectors only. Divide by both.": dots / length,
        "divided by the squared lengths. Divide by the lengths, the square roots.":
            dots / (length[:, None] * length) ** 2,
        "these are cosine distances; a cosine is 1 where a vector meets itself.": 1 - expected,
        "the sign is lost. Opposite directions have cosine -1.": expected.abs(),
        "the vectors were brought to length 1 along the wrong axis. Take d_model, the last one.": across @ across.T,
        "all vectors together were divided by one length. Each has its own: .norm(dim=-1, keepdim=True).":
            dots / vectors.norm() ** 2,
        "these are cosines between the model's dimensions. Take unit @ unit.T.": across.T @ across,
        "each vector was compared with itself alone, and that is always 1. Every pair has a cosine.": torch.ones(3),
    }  # fmt: skip
    compare(attempt(vectors), expected, "emotion, emotion", mistakes)


def our_split(vectors: Tensor) -> tuple[Tensor, Tensor]:
    shared = vectors.mean(0)
    return shared, vectors - shared


def as_two_tensors(answer: Any, *given: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Wrong(f"expected two tensors, `return shared, specific`; got {type(answer).__name__}.")
    return as_tensor(answer[0]), as_tensor(answer[1])


@exercise(our_split, as_two_tensors, "shared + specific gives the vector back, and the specific parts sum to zero.")
def check_split(attempt: Callable) -> None:
    """`split(vectors)`, [emotion, layer, d_model] -> shared [layer, d_model] and specific [emotion, layer, d_model]."""
    vectors = toy(4, 3, 5, seed=4)
    mean, difference = our_split(vectors)
    shared, specific = attempt(vectors)
    if shared.shape == vectors.shape and specific.shape in (mean.shape, (1, *mean.shape)):
        raise Wrong("the two are swapped; expected `return shared, specific`.")
    mistakes = {
        "the shared part still has an axis for emotions, of size 1. Take .mean(0) without keepdim.": mean[None],
        "the shared part is a sum over emotions; it should be their mean.": vectors.sum(0),
        "the shared part is a mean over layers. The mean runs over emotions, the first axis.": vectors.mean(1),
        "the shared part is one number, the mean of everything. The mean runs over emotions alone.": vectors.mean(),
        "the shared part is a median. Only the mean makes the specific parts sum to zero.": vectors.median(0).values,
    }
    compare(shared, mean, "layer, d_model", mistakes, part="shared part")
    unit = normalize(mean, dim=-1)
    mistakes = {
        "the specific part is still the whole vector. Subtract the shared part.": vectors,
        "the specific part has the wrong sign: it is the vector less the shared part, not the reverse.": -difference,
        "the shared part was added, not subtracted.": vectors + mean,
        "the shared part's direction was projected out. Then shared + specific does not give the vector back.":
            vectors - (vectors * unit).sum(-1, keepdim=True) * unit,
        "the specific parts have length 1. Keep their length: shared + specific should give the vector back.":
            normalize(difference, dim=-1),
    }  # fmt: skip
    compare(specific, difference, "emotion, layer, d_model", mistakes, part="specific part")


def our_random_like(vector: Tensor, generator: torch.Generator) -> Tensor:
    return normalize(torch.randn(vector.shape, generator=generator), dim=-1) * vector.norm(dim=-1, keepdim=True)


@exercise(our_random_like, as_tensor, "As long as the vector at every layer, and it points nowhere in particular.")
def check_random_like(attempt: Callable) -> None:
    """`random_like(vector, generator)`, [layer, d_model] -> [layer, d_model]."""
    vector = toy(3, 64, seed=5) * torch.tensor([[0.5], [2.0], [10.0]])
    global_state = torch.get_rng_state()
    drawn, again, other = (attempt(vector, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    if drawn.shape != vector.shape:
        raise Wrong(f"expected shape {tuple(vector.shape)} = [layer, d_model], got {tuple(drawn.shape)}.")
    if not drawn.isfinite().all():
        raise Wrong("the result holds NaN or infinity; is something divided by zero?")
    unit = normalize(drawn, dim=-1)
    if ((unit * normalize(vector, dim=-1)).sum(-1).abs() > 0.99).any():
        raise Wrong("this is still the vector's own direction. Draw a new one with torch.randn.")
    if not torch.get_rng_state().equal(global_state) or not drawn.equal(again):
        raise Wrong(
            "two calls with equally seeded generators must give the same numbers, and torch's global state "
            "must stay as it was. Pass the generator on: torch.randn(shape, generator=generator)."
        )
    if drawn.equal(other):
        raise Wrong("other seeds give the same direction. Draw from the generator that you are given.")
    expected = vector.norm(dim=-1)
    raw = torch.randn(vector.shape, generator=torch.Generator().manual_seed(0))
    mistakes = {
        "the directions have length 1. Multiply each layer's by the length of the vector there.": torch.ones(3),
        "the length is squared.": expected**2,
        "these are raw random numbers. Bring each layer's to length 1 first, then to the vector's length.":
            raw.norm(dim=-1),
        "the random numbers were multiplied by the vector's length, but not divided by their own first.":
            raw.norm(dim=-1) * expected,
        "the length is right only for all layers together. Each layer has its own: .norm(dim=-1, keepdim=True).":
            raw.norm(dim=-1) / raw.norm() * vector.norm(),
        "every layer has the same length, that of all layers together. Take .norm(dim=-1, keepdim=True).":
            vector.norm().expand(3),
    }  # fmt: skip
    compare(drawn.norm(dim=-1), expected, "layer", mistakes, part="length of the direction")
    if (unit[0] @ unit[1]).abs() > 0.99:
        raise Wrong("all layers have the same direction. Draw numbers for each layer: [layer, d_model].")
    if (drawn >= 0).all():
        raise Wrong("all numbers are positive, as torch.rand draws them. torch.randn has no preferred direction.")


# ---------------------------------------------------------------- 5 to 8: intervals, hooks, labels, choosing


def our_share(hits: Tensor) -> tuple[float, float, float]:
    return hits.double().mean().item(), *interval(hits.numpy())


def wilson(p: float, n: int, z: float) -> list[float]:
    shrink = 1 + z**2 / n
    centre = (p + z**2 / n / 2) / shrink
    half = z * sqrt(p * (1 - p) / n + z**2 / n**2 / 4) / shrink
    return [p, centre - half, centre + half]


@exercise(our_share, as_numbers("share, lo, hi"), "It has a width even where all questions agree.")
def check_share(attempt: Callable) -> None:
    """`share(hits)`, [query] of True and False -> share, lower and upper end of Wilson's 95 % interval."""
    for n_hits, n in ((6, 8), (8, 8), (0, 20)):
        hits = torch.tensor([True] * n_hits + [False] * (n - n_hits))
        p, low, high = our_share(hits)
        half = (high - low) / 2
        wald = 1.96 * sqrt(p * (1 - p) / n)
        mistakes = {
            "these are percent; shares lie between 0 and 1.": [100 * p, 100 * low, 100 * high],
            "the order is share, lo, hi.": [low, p, high],
            "you returned the centre of the interval in place of the share.": [(low + high) / 2, low, high],
            "this is the normal approximation p ± 1.96 √(p(1-p)/n), which leaves [0, 1]. Use Wilson's formula.":
                [p, p - wald, p + wald],
            "the ends are cut at 0 and 1, but underneath is the normal approximation. Use Wilson's formula.":
                [p, max(0, p - wald), min(1, p + wald)],
            "half of the width is laid around the share. Wilson's interval lies around its own centre.":
                [p, p - half, p + half],
            "this is an interval of one standard error (68 %). For 95 % take z = 1.96.": wilson(p, n, 1.0),
            "this is an interval of 90 %. For 95 % take z = 1.96.": wilson(p, n, 1.645),
            "this is an interval of 99 %. For 95 % take z = 1.96.": wilson(p, n, 2.576),
        }  # fmt: skip
        if p in (0, 1):
            never = f"{n_hits} hits of {n} give an interval without width. So few questions make nothing certain."
            mistakes = {never: [p, p, p]} | mistakes
        compare(attempt(hits), [p, low, high], "share, lo, hi", mistakes, within=2e-3)


def our_steered_cache(model: Any, tokens: Tensor, hook_name: str, vector: Tensor) -> Mapping[str, Tensor]:
    def add(activation: Tensor, hook: Any) -> Tensor:
        return activation + vector

    with model.hooks(fwd_hooks=[(hook_name, add)]):
        return model.run_with_cache(tokens)[1]


def as_cache(answer: Any, *given: Any) -> Mapping[str, Tensor]:
    if isinstance(answer, tuple):
        raise Wrong("run_with_cache returns (logits, cache); return the cache alone, its second part.")
    if not hasattr(answer, "keys"):
        raise Wrong(f"expected the cache of a run; got a {type(answer).__name__}.")
    return answer


def toy_model() -> Any:
    """A TransformerLens model of three layers, width 4 and 7 words, with hook points blocks.0 to blocks.2."""
    from transformer_lens import HookedRootModule  # takes seconds, and only this check needs it
    from transformer_lens.hook_points import HookPoint

    generator = torch.Generator().manual_seed(0)

    class Toy(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Parameter(torch.randn(7, 4, generator=generator))
            self.weights = nn.Parameter(torch.randn(3, 4, 4, generator=generator))
            self.blocks = nn.ModuleList([HookPoint() for _ in self.weights])
            self.setup()

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed[tokens]
            for weight, hook in zip(self.weights, self.blocks, strict=True):
                x = hook(x + torch.tanh(x @ weight))
            return x @ self.embed.T

    return Toy()


@exercise(
    our_steered_cache,
    as_cache,
    "Earlier layers are equal to the last bit, the target is before + vector, and no hook is left.",
)
@torch.no_grad()
def check_steered_cache(attempt: Callable) -> None:
    """`steered_cache(model, tokens, hook_name, vector)` -> the activations of a run with the vector added there."""
    vector = torch.tensor([1.0, -2.0, 0.5, 3.0])
    model, tokens = toy_model(), torch.tensor([[1, 4, 2], [5, 0, 6]])
    earlier, target, later = names = ["blocks.0", "blocks.1", "blocks.2"]
    before = {name: x.clone() for name, x in model.run_with_cache(tokens)[1].items()}
    after = attempt(model, tokens, target, vector)
    missing = [name for name in names if name not in after.keys()]  # noqa: SIM118, a cache has no `in`
    if missing:
        raise Wrong(f"expected the cache of a whole run; {', '.join(missing)} is not in it.")
    plain = model.run_with_cache(tokens)[1]
    if not all(plain[name].equal(before[name]) for name in names):
        raise Wrong(
            "the hook is still there after your function: a plain run of the model is changed. Add it with "
            "`with model.hooks(fwd_hooks=[(hook_name, function)]):`, which takes it off again."
        )
    if not after[earlier].equal(before[earlier]):
        raise Wrong("layer 0 is changed; the vector goes in at layer 1. Hook `hook_name` and nothing else.")
    if after[target].equal(before[target]) and after[later].equal(before[later]):
        raise Wrong("nothing is changed. Does the hook function return something, and is the run inside the `with`?")
    if after[target].equal(before[target]):
        raise Wrong("the cache was filled before the hook came. Run with the cache inside `with model.hooks`.")
    expected = before[target] + vector
    at_last = before[target].clone()
    at_last[:, -1] += vector
    mistakes = {
        "the activation was replaced by the vector. Add it: return activation + vector.": vector.expand_as(expected),
        "the vector was subtracted.": before[target] - vector,
        "the vector was added twice.": expected + vector,
        "the vector was added at the last token alone; here it goes to every token.": at_last,
        "the vector was brought to length 1 first. Add it as it is.": before[target] + vector / vector.norm(),
    }
    compare(after[target], expected, "batch, token, d_model", mistakes, part=f"activation at {target}", within=1e-6)
    if not torch.allclose(after[later], expected + torch.tanh(expected @ model.weights[2])):
        raise Wrong("layer 1 is right, layer 2 is not what layer 1 makes of it: was the vector added at every layer?")


def our_shuffle_labels(table: pd.DataFrame, rng: np.random.Generator) -> pd.Series:
    return table.groupby("query_id")["condition"].transform(lambda labels: rng.permutation(labels.to_numpy()))


def as_labels(answer: Any, table: pd.DataFrame, rng: np.random.Generator) -> list[str]:
    """One label per row; a Series in another order is put back by its index, as pandas does in a column."""
    if isinstance(answer, pd.DataFrame):
        raise Wrong("expected one label per row; got a table. Return its column of conditions.")
    if isinstance(answer, pd.Series) and set(answer.index) == set(table.index):
        in_order = answer.reindex(table.index)
        if not answer.index.equals(table.index) and in_order.equals(table["condition"]):
            raise Wrong(
                "you shuffled a Series together with its index, and pandas puts it back in order as soon as it becomes "
                "a column. Take the labels alone: .to_numpy()."
            )
        answer = in_order
    labels = [str(label) for label in answer]
    if len(labels) != len(table):
        raise Wrong(f"expected {len(table)} labels, one per row, got {len(labels)}.")
    return labels


def by_query(labels: list[str], queries: list[str]) -> dict:
    return pd.Series(labels).groupby(queries).agg(sorted).to_dict()


@exercise(our_shuffle_labels, as_labels, "Every question keeps its labels; only which answer bears which is chance.")
def check_shuffle_labels(attempt: Callable) -> None:
    """`shuffle_labels(table, rng)` -> the conditions [row], exchanged only between answers to the same question."""
    queries = ["q3", "q1", "q2", "q4"] * 3 + ["q4", "q2"] * 2  # so that they have different sets of labels
    labels = ["joy"] * 4 + ["neutral"] * 4 + ["fear"] * 4 + ["anger"] * 2 + ["sadness"] * 2
    table = pd.DataFrame({"query_id": queries, "condition": labels})
    global_state = np.random.get_state(legacy=False)["state"]["key"].copy()
    drawn, again, other = (attempt(table, np.random.default_rng(seed)) for seed in (0, 0, 1))
    if drawn != again or not np.array_equal(np.random.get_state(legacy=False)["state"]["key"], global_state):
        raise Wrong("equally seeded generators must give the same labels. Draw with rng, not np.random.")
    if drawn == labels:
        raise Wrong("the labels are as they were.")
    if drawn == other:
        raise Wrong("another seed gives the same labels. Sorting or turning round is no shuffling; use rng.")
    if not set(drawn) <= set(labels):
        raise Wrong(f"expected the labels themselves, got {sorted(set(drawn) - set(labels))[0]!r}.")
    before, after = by_query(labels, queries), by_query(drawn, queries)
    if after == before:
        return
    if by_query(drawn, sorted(queries)) == before:
        raise Wrong(
            "right within each question, but the labels come out question by question, and the rows are in another "
            "order. Write them back to the rows they belong to (groupby(...).transform)."
        )
    if sorted(drawn) == sorted(labels):
        raise Wrong(
            "labels moved between questions. Then a topic (a funeral, a party) could come to stand for an emotion. "
            "Shuffle among the answers to one question only: groupby('query_id')."
        )
    query = next(query for query in before if after[query] != before[query])
    raise Wrong(
        f"question {query} had the labels {', '.join(before[query])}, and now has {', '.join(after[query])}. "
        "Shuffling keeps each as often as it was: rng.permutation, not rng.choice."
    )


def our_choose_layer(hits: Tensor, n: int) -> tuple[int, float]:
    layer = int(hits[:, :n].double().mean(1).argmax())
    return layer, hits[layer, n:].double().mean().item()


@exercise(our_choose_layer, as_numbers("layer, share"), "Chosen on one set of questions, reported on another.")
def check_choose_layer(attempt: Callable) -> None:
    """`choose_layer(hits, n)`, [layer, query] -> the best layer on the first n queries, its share on the others."""
    rows = ["1110100000", "0000111110", "1010111100"]
    hits, n = torch.tensor([[int(hit) for hit in row] for row in rows]).bool(), 4
    first, rest, every = (x.double().mean(1) for x in (hits[:, :n], hits[:, n:], hits))
    best, best_of_all = int(first.argmax()), int(every.argmax())
    mistakes = {
        "the layer is right, but its share is of the questions that chose it. There the winner was also lucky.":
            [best, first[best]],
        "the layer is right, but its share is of all questions, those that chose it among them.": [best, every[best]],
        "the layer was chosen on all questions, those that you report on among them.": [best_of_all, rest[best_of_all]],
        "the layer was chosen, and reported, on all questions. There the best of many always looks good.":
            [best_of_all, every.max()],
        "the layer was chosen on the questions that you report on. Choose on the first n.":
            [int(rest.argmax()), rest.max()],
        "the layer was chosen on the first n questions, but the share is the best of any layer on the others.":
            [best, rest.max()],
        "you returned the best share in place of the layer's number: take .argmax().": [first[best], rest[best]],
        "the order is layer, share.": [rest[best], best],
    }  # fmt: skip
    compare(attempt(hits, n), our_choose_layer(hits, n), "layer, share", mistakes)
