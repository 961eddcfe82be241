"""Tables in which a claim is true or false by construction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
import pandas as pd

DOSES = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
DRIFT_DOSES = (0.25, 0.5, 1.0, 2.0, 4.0)
EMOTIONS = ("joy", "fear")


def curves(
    shapes: Mapping[str, Callable] | Callable,
    *,
    random: Callable = lambda a: 0.0 * a,
    controls=("none", "random"),
    noise: float = 0.1,
    doses=DOSES,
    n: int = 16,
    scale: str = "judge",
    seed: int = 0,
) -> pd.DataFrame:
    """value = level of the query + shape(dose) + noise, for each emotion and beside a random direction."""
    rng = np.random.default_rng(seed)
    shapes = shapes if isinstance(shapes, Mapping) else dict.fromkeys(EMOTIONS, shapes)
    rows = []
    for q in range(n):
        level = rng.normal()
        for (emotion, shape), control, alpha in product(shapes.items(), controls, doses):
            if alpha or control == "none":
                mean = shape(alpha) if control == "none" else random(alpha)
                value = level + mean + noise * rng.normal()
                rows.append((f"q{q}", f"s{q // 2}", scale, emotion, control, alpha, value))
    return pd.DataFrame(rows, columns=["query_id", "situation", "scale", "emotion", "control", "alpha", "value"])


def drift(
    topic: Callable, random: Callable, *, kl: Callable = np.square, noise: float = 0.02, n: int = 16, seed: int = 0
) -> pd.DataFrame:
    """Drift of the vector (control "none") and of the others, the answer drifting as the topic does."""
    rng = np.random.default_rng(seed)
    rows = []
    for q, emotion, control, alpha in product(range(n), EMOTIONS, ("none", "random", "shared"), DRIFT_DOSES):
        mean = topic(alpha) if control == "none" else random(alpha)
        found = (mean + noise * rng.normal(), mean + noise * rng.normal(), kl(alpha))
        rows.append((f"q{q}", f"s{q // 2}", emotion, control, alpha, *found))
    rows += [(f"q{q}", f"s{q // 2}", e, "prompt", 0.0, 0.4, 0.8, 0.5) for q, e in product(range(n), EMOTIONS)]
    return pd.DataFrame(rows, columns=["query_id", "situation", "emotion", "control", "alpha", "topic", "answer", "kl"])


def pairs(
    effects: Mapping[str, Callable],
    *,
    noise: float = 0.02,
    n: int = 16,
    levels=(0.0, 0.5, 1.0),
    scale: str = "log-odds",
    seed: int = 0,
) -> pd.DataFrame:
    """value of the target = level + effect(own dose, other dose), one effect for "whole", "specific" and "random"."""
    rng = np.random.default_rng(seed)
    rows = []
    for q, (kind, effect), pair in product(range(n), effects.items(), (("joy", "fear"), ("fear", "anger"))):
        level = rng.normal()
        part, control = ("whole", "random") if kind == "random" else (kind, "none")
        for (a, b), side in product(product(levels, levels), (0, 1)):
            own, other = (a, b) if side == 0 else (b, a)
            value = level + effect(own, other) + noise * rng.normal()
            rows.append((f"q{q}", f"s{q // 2}", scale, *pair, a, b, part, control, pair[side], value))
    names = ["query_id", "situation", "scale", "first", "second", "a", "b", "part", "control", "target", "value"]
    return pd.DataFrame(rows, columns=names)
