"""Checks for exercises 5 to 8: intervals, hooks, shuffled labels, choosing and reporting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from emolab.base.stats import interval
from emolab.classroom.attempt import Wrong, attempt, done, same


def check_share(share: Callable[[Tensor], tuple[float, float, float]]) -> None:
    """`share(hits)`, [query] of True and False -> share, lower and upper end of Wilson's 95 % interval."""
    name = "share"
    for n_hits, n in ((6, 8), (8, 8), (0, 20)):
        hits = torch.tensor([True] * n_hits + [False] * (n - n_hits))
        got = attempt(name, share, hits)
        numbers = _numbers(name, got, "share, lo, hi")
        p = n_hits / n
        low, high = interval(hits.numpy())
        expected = torch.tensor([p, low, high])
        wald = sqrt(p * (1 - p) / n)
        centre, half = (low + high) / 2, (high - low) / 2
        mistakes = {
            "these are percent; shares lie between 0 and 1.": 100 * expected,
            "the order is share, lo, hi.": [low, p, high],
            "the share is the number of hits over the number of questions; you returned the centre of the interval, "
            "which Wilson's formula pulls towards one half.": [centre, low, high],
            "the normal approximation p ± 1.96 √(p(1-p)/n) leaves [0, 1] and says nothing of few questions. Wilson's "
            "interval also moves the centre.": [p, p - 1.96 * wald, p + 1.96 * wald],
            "the ends are cut at 0 and 1, but underneath is the normal approximation. Use Wilson's formula.":
                [p, max(0, p - 1.96 * wald), min(1, p + 1.96 * wald)],
            "half of the width is laid around the share. Wilson's interval lies around its own centre.":
                [p, p - half, p + half],
        }  # fmt: skip
        for z, what in ((1.0, "one standard error (68 %)"), (1.645, "90 %"), (2.576, "99 %")):
            shrink = 1 + z**2 / n
            c, h = (p + z**2 / n / 2) / shrink, z * sqrt(p * (1 - p) / n + z**2 / n**2 / 4) / shrink
            mistakes[f"this is an interval of {what}. For 95 % take z = 1.96."] = [p, c - h, c + h]
        if p in (0, 1):
            never = f"{n_hits} hits of {n} give an interval without width. So few questions make nothing certain."
            mistakes = {never: [p, p, p]} | mistakes
        same(name, numbers, expected, "share,lo,hi", mistakes, within=2e-3)
    done(name, "It has a width even where all questions agree.")


def _numbers(name: str, got: Any, order: str) -> Tensor:
    """The answer as so many numbers, in this order."""
    try:
        numbers = torch.tensor([float(x) for x in got])
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.zeros(0)
    if len(numbers) != len(order.split(", ")):
        raise Wrong(f"{name}: expected {len(order.split(', '))} numbers, `return {order}`; got {got!r:.80}.")
    return numbers


class _Block(nn.Module):
    def __init__(self, size: int, draw: torch.Generator):
        from transformer_lens.hook_points import HookPoint

        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size, generator=draw))
        self.hook_out = HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        return self.hook_out(x + torch.tanh(x @ self.weight))


def toy_model() -> Any:
    """A TransformerLens model of three layers, width 4 and 7 words, with hook points blocks.{layer}.hook_out."""
    from transformer_lens import HookedRootModule

    class Toy(HookedRootModule):
        def __init__(self):
            super().__init__()
            draw = torch.Generator().manual_seed(0)
            self.embed = nn.Parameter(torch.randn(7, 4, generator=draw))
            self.blocks = nn.ModuleList([_Block(4, draw) for _ in range(3)])
            self.setup()

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed[tokens]
            for block in self.blocks:
                x = block(x)
            return x @ self.embed.T

    return Toy()


@torch.no_grad()
def check_steered_cache(steered_cache: Callable[[Any, Tensor, str, Tensor], Mapping]) -> None:
    """`steered_cache(model, tokens, hook_name, vector)` -> the activations of a run with the vector added there."""
    name, vector = "steered_cache", torch.tensor([1.0, -2.0, 0.5, 3.0])
    model, tokens = toy_model(), torch.tensor([[1, 4, 2], [5, 0, 6]])
    names = [f"blocks.{layer}.hook_out" for layer in range(3)]
    before = {n: x.clone() for n, x in model.run_with_cache(tokens)[1].items()}
    got = attempt(name, steered_cache, model, tokens, names[1], vector)
    if isinstance(got, tuple):
        raise Wrong(f"{name}: run_with_cache returns (logits, cache); return the cache alone, its second part.")
    missing = [n for n in names if not hasattr(got, "keys") or n not in got.keys()]  # noqa: SIM118, a cache has no `in`
    if missing:
        raise Wrong(f"{name}: expected the cache of a run, with {names[1]} in it; got a {type(got).__name__}.")
    after = {n: got[n] for n in names}
    plain = model.run_with_cache(tokens)[1]
    if not all(torch.equal(plain[n], before[n]) for n in names):
        raise Wrong(
            f"{name}: the hook is still there after your function: a plain run of the model is changed. Add it with "
            "`with model.hooks(fwd_hooks=[(hook_name, function)]):`, which takes it off again."
        )
    if not torch.equal(after[names[0]], before[names[0]]):
        raise Wrong(f"{name}: layer 0 is changed; the vector goes in at layer 1. Hook `hook_name` and nothing else.")
    target, wanted = after[names[1]], before[names[1]] + vector
    if torch.equal(target, before[names[1]]):
        if torch.equal(after[names[2]], before[names[2]]):
            raise Wrong(
                f"{name}: nothing is changed. Does the hook function return the new activation, and is the model run "
                "inside the `with`?"
            )
        raise Wrong(f"{name}: the cache was filled before the hook came. Run with the cache inside `with model.hooks`.")
    only = before[names[1]].clone()
    only[:, -1] += vector
    mistakes = {
        "the activation was replaced by the vector. Add it: return activation + vector.": vector.expand_as(wanted),
        "the vector was subtracted.": before[names[1]] - vector,
        "the vector was added twice.": wanted + vector,
        "the vector was added at the last token alone; here it goes to every token.": only,
        "the vector was brought to length 1 first. Add it as it is.": before[names[1]] + vector / vector.norm(),
    }
    same(name, target, wanted, "batch token d_model", mistakes, what=f"activation at {names[1]}", within=1e-6)
    if not torch.allclose(after[names[2]], model.blocks[2](wanted)):
        raise Wrong(
            f"{name}: layer 1 is right, layer 2 is not what layer 1 makes of it: was the vector added at every layer?"
        )
    done(name, "Earlier layers are equal to the last bit, the target is before + vector, and no hook is left.")


def check_shuffle_labels(shuffle_labels: Callable[[pd.DataFrame, np.random.Generator], Any]) -> None:
    """`shuffle_labels(table, rng)` -> the conditions [row], exchanged only between answers to the same question."""
    name = "shuffle_labels"
    pairs = [(q, c) for c in ("joy", "neutral", "fear") for q in ("q3", "q1", "q2", "q4")]
    pairs += [(q, c) for c in ("anger", "sadness") for q in ("q4", "q2")]  # the sets differ: moves between them show
    table = pd.DataFrame(pairs, columns=["query_id", "condition"])
    own = table["condition"].tolist()

    def draw(seed: int) -> list[str]:
        got = attempt(name, shuffle_labels, table, np.random.default_rng(seed))
        if isinstance(got, pd.DataFrame):
            raise Wrong(f"{name}: expected one label a row; got a table. Return its column of conditions.")
        if isinstance(got, pd.Series) and set(got.index) == set(table.index) and list(got.index) != list(table.index):
            if got.reindex(table.index).tolist() == own:
                raise Wrong(
                    f"{name}: you shuffled a Series together with its index, and pandas puts it back in order as "
                    "soon as it becomes a column. Take the labels alone: .to_numpy()."
                )
            got = got.reindex(table.index)
        labels = [str(x) for x in got]
        if len(labels) != len(own):
            raise Wrong(f"{name}: expected {len(own)} labels, one a row, got {len(labels)}.")
        return labels

    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    got, again, other = draw(0), draw(0), draw(1)
    if got != again or not np.array_equal(np.random.get_state(legacy=False)["state"]["key"], state):
        raise Wrong(f"{name}: equally seeded generators must give the same labels. Draw with rng, not np.random.")
    if got == own:
        raise Wrong(f"{name}: the labels are as they were.")
    if got == other:
        raise Wrong(f"{name}: another seed gives the same labels. Sorting or turning round is no shuffling; use rng.")
    if not set(got) <= set(own):
        raise Wrong(f"{name}: expected the labels themselves, got {sorted(set(got) - set(own))[0]!r}.")
    here, there = (table.assign(condition=x).groupby("query_id")["condition"].agg(sorted).to_dict() for x in (got, own))
    if here == there:
        return done(name, "Every question keeps its labels; only which answer bears which is chance.")
    regrouped = table.assign(query_id=sorted(table["query_id"]), condition=got)
    if regrouped.groupby("query_id")["condition"].agg(sorted).to_dict() == there:
        raise Wrong(
            f"{name}: right within each question, but the labels come out question by question, and the rows are in "
            "another order. Write them back to the rows they belong to (groupby(...).transform)."
        )
    if sorted(got) == sorted(own):
        raise Wrong(
            f"{name}: labels moved between questions. Then a topic (a funeral, a party) could come to stand for an "
            "emotion. Shuffle among the answers to one question only: groupby('query_id')."
        )
    query = next(q for q in there if here[q] != there[q])
    raise Wrong(
        f"{name}: question {query} had the labels {', '.join(there[query])}, and now has {', '.join(here[query])}. "
        "Shuffling keeps each as often as it was: rng.permutation, not rng.choice."
    )


def check_choose_layer(choose_layer: Callable[[Tensor, int], tuple[int, float]]) -> None:
    """`choose_layer(hits, n)`, [layer, query] -> the best layer on the first n queries, its share on the others."""
    name, n = "choose_layer", 4
    hits = torch.tensor(
        [[1, 1, 1, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1, 0], [1, 0, 1, 0, 1, 1, 1, 1, 0, 0]]
    ).bool()
    got = attempt(name, choose_layer, hits, n)
    numbers = _numbers(name, got, "layer, share")
    x = hits.double()
    first, rest, every = x[:, :n].mean(1), x[:, n:].mean(1), x.mean(1)
    best = int(first.argmax())
    mistakes = {
        "the layer is right, but its share is of the questions that chose it. There the winner was also lucky; report "
        "on the others.": [best, first[best]],
        "the layer is right, but its share is of all questions, those that chose it among them. Report on the others.":
            [best, every[best]],
        "the layer was chosen on all questions, those that you report on among them.":
            [int(every.argmax()), rest[int(every.argmax())]],
        "the layer was chosen, and reported, on all questions. The best of many always looks good on the questions "
        "that chose it.": [int(every.argmax()), every.max()],
        "the layer was chosen on the questions that you report on. Choose on the first n.":
            [int(rest.argmax()), rest.max()],
        "the layer was chosen on the first n questions, but the share is the best of any layer on the others.":
            [best, rest.max()],
        "you returned the best share in place of the layer's number: take .argmax().": [first[best], rest[best]],
        "the order is layer, share.": [rest[best], best],
    }  # fmt: skip
    expected = torch.tensor([float(best), float(rest[best])])
    same(name, numbers, expected, "layer,share", mistakes)
    done(name, "Chosen on one set of questions, reported on another.")
