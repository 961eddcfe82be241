"""Wrong answers to the exercises of notebook 07: (exercise, function, words that its explanation must hold)."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize


def gaussian(v, g):
    return torch.randn(v.shape, generator=g)


def long_as(x, v):
    return x / x.norm(dim=-1, keepdim=True) * v.norm(dim=-1, keepdim=True)


def wilson(hits, z=1.96):
    n, p = len(hits), hits.double().mean()
    c, h = (p + z**2 / n / 2) / (1 + z**2 / n), z * (p * (1 - p) / n + (z / n) ** 2 / 4).sqrt() / (1 + z**2 / n)
    return p, c - h, c + h


def wald(hits, cut=False):
    p = hits.double().mean()
    half = 1.96 * (p * (1 - p) / len(hits)).sqrt()
    return (p, (p - half).clamp(0, 1), (p + half).clamp(0, 1)) if cut else (p, p - half, p + half)


def hooked(make, name=None):
    """An answer whose hook function is make(vector)."""

    def steered_cache(model, tokens, hook_name, vector):
        with model.hooks(fwd_hooks=[(name or hook_name, make(vector))]):
            return model.run_with_cache(tokens)[1]

    return steered_cache


def at_last(vector):
    def add(x, hook):
        x = x.clone()
        x[:, -1] += vector
        return x

    return add


def everywhere(model, tokens, hook_name, vector):
    hooks = [(f"blocks.{i}", lambda x, hook: x + vector) for i in (1, 2)]
    with model.hooks(fwd_hooks=hooks):
        return model.run_with_cache(tokens)[1]


def left_behind(model, tokens, hook_name, vector):
    model.add_hook(hook_name, lambda x, hook: x + vector)
    return model.run_with_cache(tokens)[1]


def too_late(model, tokens, hook_name, vector):
    before = model.run_with_cache(tokens)[1]
    after = hooked(lambda v: lambda x, hook: x + v)(model, tokens, hook_name, vector)
    return {n: after[n] if n == "blocks.2" else before[n] for n in before}


def within(table, change):
    return table.groupby("query_id")["condition"].transform(change)


def in_groups(table, rng):
    return [x for _, s in table.groupby("query_id")["condition"] for x in rng.permutation(s.to_numpy())]


def choose(on, report, hits, n):
    parts = {"first": hits[:, :n], "rest": hits[:, n:], "all": hits}
    layer = int(parts[on].double().mean(1).argmax())
    return layer, parts[report][layer].double().mean()


def in_place(emotional, neutral):
    emotional -= neutral
    return emotional.mean(0)


MISTAKES = [
    ("emotion_vector", lambda e, n: (n - e).mean(0), "sign is turned round"),
    ("emotion_vector", lambda e, n: e.mean(0), "emotional answers alone"),
    ("emotion_vector", lambda e, n: n.mean(0), "neutral answers alone"),
    ("emotion_vector", lambda e, n: (e - n).sum(0), "sum over questions"),
    ("emotion_vector", lambda e, n: e - n, "mean over questions is missing"),
    ("emotion_vector", lambda e, n: (e - n).mean(1), "mean runs over layers"),
    ("emotion_vector", lambda e, n: (e - n).mean(-1), "model's dimensions"),
    ("emotion_vector", lambda e, n: (e - n).mean(), r"\.mean\(\) without an axis.*\n.*\(3, 5\) = \[layer, d_model\]"),
    ("emotion_vector", lambda e, n: normalize((e - n).mean(0), dim=-1), "Keep their length"),
    ("emotion_vector", lambda e, n: 3 * (e - n).mean(0), "shape is right, the numbers are not"),
    ("emotion_vector", lambda e, n: (e - n).mean(0)[:2], "another shape"),
    ("emotion_vector", lambda e, n: (e - n).mean(0) / 0 * 0, "NaN"),
    ("emotion_vector", lambda e, n: print(end=""), "returns nothing"),
    ("emotion_vector", lambda e, n: "joy", "is a str; expected a tensor"),
    ("emotion_vector", lambda e, n: e @ n, r"in line \d+ of its cell with RuntimeError.*\n.*shape \(4, 3, 5\)"),
    ("emotion_vector", lambda e: e, "TypeError"),
    ("emotion_vector", in_place, "changed what it was given"),
    ("emotion_vector", torch.zeros(3, 5), "without brackets"),
    ("cosine", lambda v: v @ v.T, "dot products"),
    ("cosine", lambda v: normalize(v, dim=-1) @ v.T, "each column is divided|each row is divided"),
    ("cosine", lambda v: v @ normalize(v, dim=-1).T, "each column is divided|each row is divided"),
    ("cosine", lambda v: v @ v.T / v.pow(2).sum(1) / v.pow(2).sum(1)[:, None], "squared lengths"),
    ("cosine", lambda v: 1 - normalize(v, dim=-1) @ normalize(v, dim=-1).T, "cosine distances"),
    ("cosine", lambda v: (normalize(v, dim=-1) @ normalize(v, dim=-1).T).abs(), "sign is lost"),
    ("cosine", lambda v: normalize(v, dim=0) @ normalize(v, dim=0).T, "wrong axis"),
    ("cosine", lambda v: v @ v.T / v.norm() ** 2, "one length"),
    ("cosine", lambda v: normalize(v, dim=0).T @ normalize(v, dim=0), "between the model's dimensions"),
    ("cosine", lambda v: torch.cosine_similarity(v, v), r"compared with itself.*\n.*\(3, 3\) = \[emotion, emotion\]"),
    ("split", lambda v: v.mean(0), "expected two tensors"),
    ("split", lambda v: (v - v.mean(0), v.mean(0)), "swapped"),
    ("split", lambda v: (v.mean(0, keepdim=True), v - v.mean(0)), "of size 1"),
    ("split", lambda v: (v.sum(0), v - v.sum(0)), "shared part is a sum"),
    ("split", lambda v: (v.mean(1), v - v.mean(0)), "mean over layers"),
    ("split", lambda v: (v.mean(), v - v.mean()), "mean of everything"),
    ("split", lambda v: (v.median(0).values, v - v.median(0).values), "median"),
    ("split", lambda v: (v.mean(0), v), "still the whole vector"),
    ("split", lambda v: (v.mean(0), v.mean(0) - v), "wrong sign"),
    ("split", lambda v: (v.mean(0), v + v.mean(0)), "was added"),
    ("split", lambda v: (v.mean(0), normalize(v - v.mean(0), dim=-1)), "length 1"),
    (
        "split",
        lambda v: (v.mean(0), v - (v * (u := normalize(v.mean(0), dim=-1))).sum(-1, keepdim=True) * u),
        "projected out",
    ),
    ("random_like", lambda v, g: gaussian(v, g)[0], r"expected shape \(3, 64\)"),
    ("random_like", lambda v, g: v / 0, "NaN or infinity"),
    ("random_like", lambda v, g: -v, "still the vector's own direction"),
    ("random_like", lambda v, g: long_as(torch.randn(v.shape), v), "global state"),
    ("random_like", lambda v, g: long_as(gaussian(v, g.manual_seed(3)), v), "Draw from the generator"),
    ("random_like", lambda v, g: normalize(gaussian(v, g), dim=-1), "directions have length 1"),
    ("random_like", gaussian, "raw random numbers"),
    ("random_like", lambda v, g: gaussian(v, g) * v.norm(dim=-1, keepdim=True), "not divided by their own"),
    ("random_like", lambda v, g: (x := gaussian(v, g)) / x.norm() * v.norm(), "for all layers together"),
    ("random_like", lambda v, g: normalize(gaussian(v, g), dim=-1) * v.norm(), "every layer has the same length"),
    ("random_like", lambda v, g: long_as(long_as(gaussian(v, g), v), v) * v.norm(dim=-1, keepdim=True), "squared"),
    ("random_like", lambda v, g: long_as(gaussian(v[:1], g).expand(3, -1), v), "all layers have the same direction"),
    ("random_like", lambda v, g: long_as(torch.rand(v.shape, generator=g), v), "torch.rand draws"),
    ("share", lambda h: h.double().mean(), "expected 3 numbers"),
    ("share", lambda h: [100 * x for x in wilson(h)], "percent"),
    ("share", lambda h: (lambda p, a, b: (a, p, b))(*wilson(h)), "order is share, lo, hi"),
    ("share", lambda h: (lambda p, a, b: ((a + b) / 2, a, b))(*wilson(h)), "centre of the interval"),
    ("share", wald, "normal approximation"),
    ("share", lambda h: wald(h, cut=True), "cut at 0 and 1"),
    ("share", lambda h: (lambda p, a, b: (p, p - (b - a) / 2, p + (b - a) / 2))(*wilson(h)), "around its own centre"),
    ("share", lambda h: wilson(h, 1.0), "one standard error"),
    ("share", lambda h: wilson(h, 1.645), "90 %"),
    ("share", lambda h: wilson(h) if h.double().mean() < 1 else wald(h), "8 hits of 8 give an interval without width"),
    ("steered_cache", lambda m, t, n, v: m.run_with_cache(t), "return the cache alone"),
    ("steered_cache", lambda m, t, n, v: m(t), "expected the cache"),
    ("steered_cache", lambda m, t, n, v: m.run_with_cache(t)[1], "nothing is changed"),
    ("steered_cache", hooked(lambda v: lambda x, hook: None), "nothing is changed"),
    ("steered_cache", hooked(lambda v: lambda x, hook: v.expand_as(x)), "replaced"),
    ("steered_cache", hooked(lambda v: lambda x, hook: x - v), "subtracted"),
    ("steered_cache", hooked(lambda v: lambda x, hook: x + 2 * v), "twice"),
    ("steered_cache", hooked(at_last), "last token alone"),
    ("steered_cache", hooked(lambda v: lambda x, hook: x + v / v.norm()), "length 1"),
    ("steered_cache", hooked(lambda v: lambda x, hook: x + v, "blocks.0"), "layer 0 is changed"),
    ("steered_cache", everywhere, "at every layer"),
    ("steered_cache", left_behind, "still there"),
    ("steered_cache", too_late, "before the hook came"),
    ("shuffle_labels", lambda t, r: t, "got a table"),
    ("shuffle_labels", lambda t, r: t["condition"][:3], "expected 16 labels"),
    ("shuffle_labels", lambda t, r: t["condition"], "as they were"),
    ("shuffle_labels", lambda t, r: t["condition"].sample(frac=1, random_state=0), "puts it back in order"),
    ("shuffle_labels", lambda t, r: r.permutation(t["condition"].to_numpy()), "moved between questions"),
    ("shuffle_labels", lambda t, r: within(t, np.random.permutation), "Draw with rng"),
    ("shuffle_labels", lambda t, r: within(t, lambda s: sorted(s)), "no shuffling"),
    ("shuffle_labels", lambda t, r: within(t, lambda s: r.choice(s.to_numpy(), len(s))), "not rng.choice"),
    ("shuffle_labels", lambda t, r: r.permutation(len(t)), "the labels themselves"),
    ("shuffle_labels", in_groups, "question by question"),
    ("choose_layer", lambda h, n: int(h[:, :n].sum(1).argmax()), "expected 2 numbers"),
    ("choose_layer", lambda h, n: h[:, :n].mean(1), "RuntimeError"),
    ("choose_layer", lambda h, n: choose("first", "first", h, n), "also lucky"),
    ("choose_layer", lambda h, n: choose("first", "all", h, n), "of all questions, those that chose it"),
    ("choose_layer", lambda h, n: choose("all", "rest", h, n), "chosen on all questions"),
    ("choose_layer", lambda h, n: choose("all", "all", h, n), "chosen, and reported"),
    ("choose_layer", lambda h, n: choose("rest", "rest", h, n), "Choose on the first n"),
    ("choose_layer", lambda h, n: (0, h[:, n:].double().mean(1).max()), "best of any layer"),
    ("choose_layer", lambda h, n: (h[:, :n].double().mean(1).max(), h[0, n:].double().mean()), "argmax"),
    ("choose_layer", lambda h, n: choose("first", "rest", h, n)[::-1], "order is layer, share"),
]
