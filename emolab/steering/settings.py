"""The cells of a sweep: combinations of settings, mixtures of emotions, and how both read in a table.

>>> from emolab.steering.settings import mixture_name, parse_mixture
>>> mixture_name({"anger": 0.5, "joy": 0.5})
'0.5 anger + 0.5 joy'
>>> parse_mixture("0.5 anger + 0.5 joy"), parse_mixture("joy")
({'anger': 0.5, 'joy': 0.5}, {'joy': 1.0})
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from emolab.base.errors import EmolabError, need_number, shown
from emolab.steering.steering import Steering
from emolab.vectors.vectors import EmotionVectors, match_norm

# The fields of `Steering` that a sweep varies, with its defaults, in the order in which they are combined.
FIELDS = {
    "site": "resid",
    "layers": "all",
    "part": "whole",
    "op": "add",
    "unit": "vector",
    "positions": "generated",
    "heads": None,
    "fade": None,
}


def mixture_name(doses: Mapping[str, float]) -> str:
    """How a mixture reads in a table; one emotion at weight 1 is its plain name.

    >>> mixture_name({"joy": 1.0, "fear": -0.5}), mixture_name({"joy": 1.0})
    ('1 joy - 0.5 fear', 'joy')
    """
    if len(doses) == 1 and 1 in doses.values():
        return next(iter(doses))
    (emotion, weight), *rest = doses.items()
    more = "".join(f" {'-' if w < 0 else '+'} {_number(abs(w))} {e}" for e, w in rest)
    return f"{_number(weight)} {emotion}{more}"


def parse_mixture(name: str) -> dict[str, float]:
    """The weights of a mixture's name, as `mixture_name` wrote it; any other name is one emotion at weight 1.

    >>> parse_mixture("1 joy - 0.5 fear")
    {'joy': 1.0, 'fear': -0.5}
    """
    parts = re.split(r" ([+-]) (?=[\d.])", name)
    found = [re.fullmatch(r"([+-]?[\d.]+(?:e[+-]?\d+)?) (.+)", part) for part in parts[::2]]
    signs = [1, *(-1 if sign == "-" else 1 for sign in parts[1::2])]
    weights = {match[2]: sign * float(match[1]) for sign, match in zip(signs, found, strict=True) if match}
    return weights if all(found) else {name: 1.0}


def spoken(name: str) -> str:
    """What an instruction names for an emotion or a mixture: all that has a positive weight; "" where nothing has.

    >>> spoken("0.5 anger + 0.5 joy"), spoken("1 joy - 0.5 fear"), spoken("joy")
    ('anger and joy', 'joy', 'joy')
    """
    return " and ".join(emotion for emotion, weight in parse_mixture(name).items() if weight > 0)


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def mixtures(emotions: Any, default: Sequence[str]) -> dict[str, dict[str, float]]:
    """{name: doses} of what a sweep was asked for: names, names of mixtures, or mixtures themselves."""
    emotions = default if emotions is None else [emotions] if isinstance(emotions, str | Mapping) else emotions
    if not hasattr(emotions, "__iter__") or not all(isinstance(e, str | Mapping) for e in emotions):
        raise EmolabError(f"emotions are {shown(emotions)}; expected names, or mixtures {{'anger': 0.5, 'joy': 1}}")
    doses = [({e: 1.0} if e in default else parse_mixture(e)) if isinstance(e, str) else dict(e) for e in emotions]
    for mixture in doses:
        if not mixture or not all(isinstance(weight, int | float | np.number) for weight in mixture.values()):
            raise EmolabError(f"the mixture {mixture!r} is none; expected something like {{'anger': 0.5, 'joy': 0.5}}")
        for emotion, weight in mixture.items():
            need_number(f"the weight of {emotion!r}", weight)
    return {mixture_name(d): d for d in doses}


def combinations(grid: Mapping[str, Any] | None, n_layers: int, n_heads: int) -> list[dict[str, Any]]:
    """Every combination of a grid's values as fields of `Steering` (and part), equal ones once.

    layers "each" and "thirds" become lists of layers, heads "each" the single heads of the layers in question; heads
    count for site "head" alone.
    """
    if grid is not None and not isinstance(grid, Mapping):
        raise EmolabError(f"grid is {shown(grid)}; expected {{field: values}}, such as {{'site': ['resid', 'attn']}}")
    grid = {field: _values(values) for field, values in (grid or {}).items()}
    unknown = [field for field in grid if field not in FIELDS]
    if unknown:
        raise EmolabError(f"unknown field {unknown[0]!r} in grid; expected {', '.join(FIELDS)}")
    empty = [field for field, values in grid.items() if not values]
    if empty:
        raise EmolabError(f"grid names no value for {empty[0]!r}; leave the field out for its default")
    values = {field: grid.get(field, [default]) for field, default in FIELDS.items()}
    if "head" not in values["site"] and any(heads is not None for heads in values["heads"]):
        raise EmolabError('heads in grid go with site "head"; add "site": ["head"]')
    values["layers"] = [layers for v in values["layers"] for layers in _layers(v, n_layers)]
    found = {}
    for cell in product(*values.values()):
        setting = dict(zip(values, cell, strict=True))
        for heads in _heads(setting, n_layers, n_heads):
            one = {**setting, "heads": heads}
            found.setdefault(tuple(map(str, described(one).values())), one)
    return list(found.values())


def _values(values: Any) -> list[Any]:
    return [values] if values is None or isinstance(values, str | Mapping | slice | int | float) else list(values)


def _layers(value: Any, n_layers: int) -> list[Any]:
    if isinstance(value, str) and value == "each":
        return [[layer] for layer in range(n_layers)]
    if isinstance(value, str) and value == "late":  # as Steering takes it, and with the numbers in the table
        return [list(range(n_layers // 2, n_layers))]
    if isinstance(value, str) and value == "thirds":
        return [part.tolist() for part in np.array_split(np.arange(n_layers), 3) if len(part)]
    return [value]


def _heads(setting: Mapping[str, Any], n_layers: int, n_heads: int) -> list[Any]:
    heads, layers = setting["heads"], setting["layers"]
    if setting["site"] != "head" or heads is None or isinstance(heads, Mapping):
        return [heads if setting["site"] == "head" else None]
    if not isinstance(heads, str) or heads != "each":
        raise EmolabError(f'heads in grid are {heads!r}; expected None (all), "each" or {{layer: [heads]}}')
    layers = range(n_layers) if isinstance(layers, str) else layers
    return [{layer: [head]} for layer in layers for head in range(n_heads)]


def described(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting as it stands in a table, one word or number a field, without missing values.

    layers "all" or "0,2"; heads "all" or "2.0,3.1" (layer.head); positions "generated", "all" or "0:4"; fade in
    tokens, infinite where nothing fades.
    """
    layers, heads, positions = setting["layers"], setting["heads"], setting["positions"]
    if isinstance(positions, slice):
        ends = (positions.start, positions.stop, *([positions.step] if positions.step else []))
        positions = ":".join("" if end is None else str(end) for end in ends)
    if isinstance(layers, Sequence | np.ndarray) and not isinstance(layers, str):
        layers = ",".join(map(str, layers))
    if isinstance(heads, Mapping):
        heads = ",".join(f"{layer}.{head}" for layer, chosen in heads.items() for head in chosen)
    return {
        **setting,
        "layers": layers,
        "positions": positions,
        "heads": "all" if heads is None else heads,
        "fade": math.inf if setting["fade"] is None else setting["fade"],
    }


def match_steering_norm(control: Steering, steering: Steering) -> Steering:
    """The control's steering, op "add", adding as long a vector as `steering` does at every layer.

    Needed for mixtures: emotions share a part, so their sum is longer than that of random vectors of their norms.
    """
    added, wanted = (s.affine()[0] for s in (control, steering))
    added = match_norm(added, like=wanted)
    site = "attn" if control.site == "head" else control.site  # where heads are summed
    source = EmotionVectors({site: added[None].float()}, ("mixture",), control.vectors.resid_norm, control.vectors.meta)
    doses = {"vectors": source, "doses": {"mixture": 1.0}, "unit": "vector", "part": "whole"}
    return replace(control, site=site, heads=None, layers="all", **doses)
