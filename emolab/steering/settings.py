"""Settings: where and how to steer, mixtures of emotions, and how both read in a table.

>>> from emolab.steering.settings import Setting, mixture_name, parse_mixture
>>> Setting(site="attn", layers="late").unit
'vector'
>>> mixture_name({"anger": 0.5, "joy": 0.5})
'0.5 anger + 0.5 joy'
>>> parse_mixture("0.5 anger + 0.5 joy"), parse_mixture("joy")
({'anger': 0.5, 'joy': 0.5}, {'joy': 1.0})
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from emolab.base.errors import EmolabError, shown
from emolab.models.roles import ROLES
from emolab.models.sites import SITES
from emolab.steering.conditions import When
from emolab.vectors.vectors import EmotionVectors, need_place

CHOICES = {
    "site": SITES,
    "op": ("add", "ablate", "clamp", "rotate", "cap"),
    "unit": ("vector", "residual", "breaking"),
    "part": ("whole", "specific", "shared"),
}
HELD = ("clamp", "cap")  # ops with which dose 0 is an edit: a component held at 0, or below


@dataclass(frozen=True)
class Setting:
    """Where and how to steer, whatever the emotions and doses: the fields of `Steering`, with the same defaults.

    >>> setting = emolab.Setting(site="attn", layers="late")
    >>> joyful = emolab.at(vectors, setting, ["joy"])[0]

    See `Steering` for what each field means. Raises EmolabError for an unknown word, positions that hold none, heads
    at another site than "head", a fade that is no half-life, and a `when` that is none; what vectors must hold is
    checked by `Steering`.
    """

    site: str = "resid"
    layers: str | Sequence[int] = "all"
    part: str = "whole"
    op: str = "add"
    unit: str = "vector"
    positions: str | slice = "generated"
    heads: dict[int, list[int]] | None = None
    fade: float | None = None
    when: When | None = None

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            need_one_of(field, getattr(self, field), choices)
        need_positions(self.positions)
        if self.layers not in ("all", "late") if isinstance(self.layers, str) else not hasattr(self.layers, "__iter__"):
            raise EmolabError(f'layers is {shown(self.layers)}; expected "all", "late" or a list of layer numbers')
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise EmolabError('layers is empty; expected "all" or at least one layer number')
        if self.heads is not None:
            if self.site != "head":
                raise EmolabError(f'heads= goes with site="head", not with site={self.site!r}')
            lists = list(self.heads.values()) if isinstance(self.heads, Mapping) else []
            if not lists or not all(isinstance(x, list | tuple | range | np.ndarray) and len(x) for x in lists):
                raise EmolabError(f"heads are {shown(self.heads)}; expected {{layer: [heads]}}, or None for every head")
        if self.fade is not None:
            if isinstance(self.fade, bool) or not isinstance(self.fade, int | float | np.number) or not self.fade > 0:
                raise EmolabError(f"fade is {self.fade!r}; expected a half-life in tokens above 0, or None")
            if self.positions != "generated":
                raise EmolabError(f'fade= goes with positions="generated", not with positions={self.positions!r}')
        if self.when is not None and not isinstance(self.when, When):
            raise EmolabError(f'when is {shown(self.when)}; expected emolab.When(vectors, "joy", above=2.0, layer=12)')


# The columns of a setting in tables, in this order, with their defaults.
FIELDS = {field.name: field.default for field in fields(Setting)}


def need_one_of(field: str, value: Any, choices: Sequence[str], more: str = "") -> None:
    """EmolabError unless the value is one of these words."""
    if not isinstance(value, str) or value not in choices:
        raise EmolabError(f"unknown {field} {shown(value)}; expected one of {', '.join(choices)}{more}")


def need_positions(positions: Any) -> None:
    """EmolabError unless positions are a word that names some, or a slice that can hold one."""
    if not isinstance(positions, slice):
        need_one_of("positions", positions, ("generated", "prompt", *ROLES, "all"), " or a slice")
        return
    start, stop, step = positions.start, positions.stop, positions.step
    if not all(x is None or isinstance(x, int) for x in (start, stop, step)) or (step is not None and step < 1):
        raise EmolabError(f"positions are {positions}; expected whole numbers and a step of at least 1")
    start = start or 0
    if stop is not None and start >= stop and (start < 0) == (stop < 0):
        raise EmolabError(f"positions {positions} hold no position; expected start before stop")


def each_layer(vectors: EmotionVectors, setting: Setting = Setting()) -> list[Setting]:
    """The setting at every single layer.

    >>> steerings = emolab.at(vectors, each_layer(vectors, Setting(site="attn")), ["joy"])
    """
    return where_measured(vectors, [replace(setting, layers=[layer]) for layer in range(vectors.n_layers)])


def each_third(vectors: EmotionVectors, setting: Setting = Setting()) -> list[Setting]:
    """The setting at the early, the middle and the late third of the layers.

    >>> [len(third.layers) for third in each_third(vectors)]
    [10, 10, 10]
    """
    thirds = np.array_split(np.arange(vectors.n_layers), 3)
    return where_measured(vectors, [replace(setting, layers=third.tolist()) for third in thirds if len(third)])


def each_head(vectors: EmotionVectors, setting: Setting = Setting(site="head")) -> list[Setting]:
    """The setting at every single head of its layers.

    >>> steerings = emolab.at(vectors, each_head(vectors, Setting(site="head", layers=[3])), ["joy"])
    """
    n_heads = vectors.get("head").shape[2]
    settings = []
    for layer in layer_numbers(setting, vectors.n_layers):
        layers = "all" if setting.layers == "all" else [layer]
        settings += [replace(setting, layers=layers, heads={layer: [head]}) for head in range(n_heads)]
    return settings


def where_measured(vectors: EmotionVectors, settings: Sequence[Setting]) -> list[Setting]:
    """The settings without layers that lack their site (of hybrid models), where vectors are zero; equal ones once."""
    kept = []
    for setting in settings:
        layers = layer_numbers(setting, vectors.n_layers)
        has = [layer for layer in layers if vectors.get(setting.site)[:, layer].any()]
        if has:
            kept.append(setting if has == layers else replace(setting, layers=has))
    return [setting for i, setting in enumerate(kept) if setting not in kept[:i]]


def layer_numbers(setting: Setting, n_layers: int) -> list[int]:
    """The layers of a setting by number: "late" is the second half; "all" with heads, the layers that these name.

    >>> layer_numbers(Setting(layers="late"), 4)
    [2, 3]

    Raises EmolabError for a layer that the model does not have.
    """
    if setting.layers == "late":
        return list(range(n_layers // 2, n_layers))
    if setting.layers == "all":
        layers = range(n_layers) if setting.heads is None else setting.heads
    else:
        layers = setting.layers
    return [need_place("layer", layer, n_layers) for layer in layers]


def described(setting: Setting, n_layers: int) -> dict[str, Any]:
    """A setting as it stands in a table, one word or number a field (`FIELDS`), without missing values.

    >>> described(Setting(site="attn", layers="late"), 4)["layers"]
    '2,3'

    layers "all" or "0,2"; heads "all" or "2.0,3.1" (layer.head); positions a word or "0:4"; fade in tokens, infinite
    where nothing fades; when "joy > 2 at resid 12", or "" for always.
    """
    layers, heads, positions = setting.layers, setting.heads, setting.positions
    if isinstance(positions, slice):
        ends = [positions.start, positions.stop, *([positions.step] if positions.step else [])]
        positions = ":".join("" if end is None else str(end) for end in ends)
    if layers != "all":
        layers = ",".join(map(str, layer_numbers(setting, n_layers)))
    if heads is not None:
        heads = ",".join(f"{layer}.{head}" for layer, chosen in heads.items() for head in chosen)
    return {
        **vars(setting),
        "layers": layers,
        "positions": positions,
        "heads": "all" if heads is None else heads,
        "fade": math.inf if setting.fade is None else setting.fade,
        "when": "" if setting.when is None else str(setting.when),
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
    terms = [re.fullmatch(r"([+-]?[\d.]+(?:e[+-]?\d+)?) (.+)", part) for part in parts[::2]]
    signs = [1, *(-1 if sign == "-" else 1 for sign in parts[1::2])]
    weights = {match[2]: sign * float(match[1]) for sign, match in zip(signs, terms, strict=True) if match}
    return weights if all(terms) else {name: 1.0}


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
    return {mixture_name(d): d for d in doses}
