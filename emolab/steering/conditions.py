"""Conditions: steer a token only where the model's own activation there passes a value.

>>> joyful = emolab.When(vectors, "joy", above=2.0, layer=12)
>>> str(joyful)
'joy > 2 at resid 12'
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, need_number, need_vectors
from emolab.models.hooks import Place
from emolab.vectors.vectors import EmotionVectors, need_place

SITES = ("resid", "attn", "mlp")


@dataclass(frozen=True, eq=False, repr=False)
class When:
    """A condition on single tokens: their projection on an emotion's vector lies above one value, or below another.

    >>> calm = emolab.When(vectors, "anger", below=0.5, layer=10)
    >>> emolab.Steering(vectors, {"joy": 1.5}, layers="late", when=calm)

    The projection of activation x on the vector v is x v / |v|^2, in multiples of the vector as doses are: adding v
    once raises it by 1. It is read at `site` (resid, attn or mlp) of one layer, before what the steering does there, at
    every token of every row by itself. Both bounds together are a band.

    Raises EmolabError for vectors without this emotion, site or layer (or zero there), and without a bound; `Steering`
    does for a layer above those that it steers, where a token would be read too late. Source: arXiv 2409.05907.
    """

    vectors: EmotionVectors
    emotion: str
    layer: int
    above: float | None = None
    below: float | None = None
    site: str = "resid"

    def __post_init__(self) -> None:
        need_vectors(self.vectors)
        if self.site not in SITES or self.site not in self.vectors.data:
            sites = ", ".join(site for site in SITES if site in self.vectors.data)
            raise EmolabError(f"when reads site {self.site!r}; expected one that these vectors hold: {sites}")
        need_place("layer", self.layer, self.vectors.n_layers)
        if not self.vectors.get(self.site, emotion=self.emotion, layer=self.layer).any():
            raise EmolabError(f"the vector of {self.emotion!r} that when reads is zero at {self.site} of {self.layer}")
        given = {name: getattr(self, name) for name in ("above", "below") if getattr(self, name) is not None}
        for name, value in given.items():
            need_number(f"{name} of when", value)
        if not given or not self.bounds[0] < self.bounds[1]:
            raise EmolabError(f"when has the bounds {given}; expected above=, below=, or a band with above < below")

    @property
    def bounds(self) -> tuple[float, float]:
        """Above and below, infinite where there is none."""
        return (-math.inf if self.above is None else self.above, math.inf if self.below is None else self.below)

    @property
    def place(self) -> Place:
        return self.site, self.layer

    def __str__(self) -> str:
        low = f"{self.above:g} < " if self.above is not None and self.below is not None else ""
        high = f" < {self.below:g}" if self.below is not None else f" > {self.above:g}"
        return f"{low}{self.emotion}{high} at {self.site} {self.layer}"

    def __repr__(self) -> str:
        bounds = ", ".join(f"{n}={getattr(self, n)}" for n in ("above", "below") if getattr(self, n) is not None)
        return f"emolab.When(vectors, {self.emotion!r}, {bounds}, layer={self.layer}, site={self.site!r})"

    def read(self) -> Float[Tensor, " d_model"]:
        """What an activation is multiplied with to give its projection."""
        v = self.vectors.get(self.site, emotion=self.emotion, layer=self.layer).double()
        return (v / v.square().sum()).to(torch.float32)
