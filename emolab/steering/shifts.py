"""Mean shifts of single neurons or of whole sublayers, added to a run or taken from it: the mechanics of their tests.

A shift is what an emotion adds on average, as `EmotionVectors` hold it: to a neuron a number, to attention or an MLP a
vector.

    ablate   x -> x - dose shift
    steer    x -> x + dose shift

Each has a control of equal size: each neuron's shift up or down at random, a sublayer's along a random direction.

>>> from emolab.steering.shifts import ShiftSpace
>>> ShiftSpace(model, vectors, ["neuron"]).edits([Change("ablate", "joy", ((18, 734),))], PositionMask(["all"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError
from emolab.models.hooks import Place
from emolab.models.model import Model
from emolab.models.sites import neuron_counts, output_norm, site_layers
from emolab.steering.edits import AffineEdit, LayerEdit
from emolab.steering.head_edits import Change
from emolab.steering.positions import PositionMask
from emolab.vectors.vectors import EmotionVectors, check_vectors, match_norm


class ShiftSpace:
    """The shifts of neurons (sites ["neuron"]), or of sublayers (["attn", "mlp"]), as changes to runs.

    A change to neurons names (layer, neuron) pairs, one to sublayers (layer, place of the site among these sites).
    """

    def __init__(self, model: Model, vectors: EmotionVectors, sites: Sequence[str]) -> None:
        check_vectors(model, vectors)
        for site in sites:
            vectors.get(site)
        self.model, self.sites, self.emotions = model, tuple(sites), vectors.emotions
        self.by_neuron = self.sites == ("neuron",)
        if self.by_neuron and any(output_norm(block, "neuron") is not None for block in model.bridge.blocks):
            raise EmolabError(
                f"{model.name!r} rescales the MLP's output before adding it, so a neuron has no fixed shift; test "
                "whole sublayers instead (emolab.heads.sublayer_effects)"
            )
        self.layers = {site: site_layers(model, site) for site in sites}
        self.sizes = neuron_counts(model) if self.by_neuron else {}
        data = {site: x for site, x in vectors.data.items() if site != "head"}  # the largest
        self.vectors = replace(vectors, data=data, means=None)
        self.made_of = (self.vectors, self.sites)

    def shift(self, change: Change, place: int) -> Float[Tensor, "layer width"]:
        """What a change adds at the site of this place; zero where it adds nothing."""
        shift = self.vectors.get(self.sites[place], emotion=change.emotion).double()
        if change.random is not None:
            draw = torch.Generator().manual_seed(change.random + place)
            random = torch.randn(shift.shape, generator=draw, dtype=torch.float64, device="cpu")
            shift = shift.abs() * random.sign() if self.by_neuron else match_norm(random, shift)
        layers, numbers = torch.tensor(change.where, device="cpu").T
        dose = -change.dose if change.op == "ablate" else change.dose
        doses = torch.zeros_like(shift)
        if self.by_neuron:
            doses[layers, numbers] = dose
        else:
            doses[layers[numbers == place]] = dose
        return shift * doses

    def edits(
        self, changes: list[Change | None], mask: PositionMask, sources: list[Tensor | None] | None = None
    ) -> dict[Place, LayerEdit]:
        """Edits by place, where there is something to do."""
        edits: dict[Place, LayerEdit] = {}
        for place, site in enumerate(self.sites):
            nothing = torch.zeros(self.vectors.get(site).shape[1:], dtype=torch.float64, device="cpu")
            rows = [nothing if change is None else self.shift(change, place) for change in changes]
            shifts = torch.stack(rows, 1).float()  # [layer, row, width]
            for layer in self.layers[site]:
                shift = shifts[layer, :, : self.sizes.get(layer)].to(self.model.device)
                if shift.any():
                    empty = shift.new_zeros(*shift.shape, 0)
                    edits[site, layer] = AffineEdit(shift, empty, empty.mT, mask)
        return edits
