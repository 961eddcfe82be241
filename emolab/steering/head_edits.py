"""Changes to single heads: the mechanics of causal tests.

A head's output is o = z W_O, with z its value before the output projection. Every change here is made at z, where heads
are still apart, and says what happens to o:

    ablate   o -> o - dose (o . u) u, with u the emotion's unit direction in that head's output
    steer    o -> o + dose EV of that head
    patch    o -> o of the same head in another run, at the positions of the answer

Each has a control of equal size: the same with a random direction in the output space of the very same head.

>>> from emolab.steering.head_edits import ablated
>>> with ablated(model, vectors, "joy", [(2, 0), (3, 1)]) as m:
...     logits = m(tokens, attention_mask=mask)
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError, shown
from emolab.base.tables import span
from emolab.models.hooks import Place
from emolab.models.model import Model
from emolab.models.sites import head_weights, output_weights, site_layers
from emolab.steering.edits import LayerEdit, hooked
from emolab.steering.positions import PositionMask
from emolab.steering.settings import need_positions
from emolab.vectors.vectors import EmotionVectors, check_vectors, need_place

OPS = ("ablate", "patch", "steer")
Heads = Sequence[tuple[int, int]]  # (layer, head)


def head_pairs(heads: Any) -> tuple[tuple[int, int], ...]:
    """(layer, head) pairs as whole numbers; EmolabError for anything else, or none."""
    try:
        pairs = tuple((operator.index(layer), operator.index(head)) for layer, head in heads)
    except (TypeError, ValueError):
        pairs = ()
    if not pairs:
        raise EmolabError(f"heads are {shown(heads)}; expected (layer, head) pairs, at least one")
    return pairs


class HeadSpace:
    """The emotion directions of every head, written in that head's own z.

    What lies in a vector outside a head's output space is left out: its own EV has no such part, and the rest of a
    foreign vector is orthogonal to whatever the head writes.
    """

    def __init__(self, model: Model, vectors: EmotionVectors) -> None:
        heads = vectors.get("head")
        check_vectors(model, vectors)
        self.emotions, self.model = vectors.emotions, model
        self.sites = ("head",)
        self.vectors = replace(vectors, data={"head": heads}, means=None)
        self.made_of = (self.vectors,)  # beside the model
        self.layers = site_layers(model, "head")  # hybrid models have heads in some layers only
        self.sizes = dict.fromkeys(self.layers, model.n_heads)
        widths = {layer: head_weights(model, layer).shape[1] for layer in self.layers}
        first = self.layers[0]
        odd = next((layer for layer, width in widths.items() if width != widths[first]), None)
        if odd is not None:
            raise EmolabError(
                f"heads of {model.name!r} differ in width ({widths[first]} in layer {first}, {widths[odd]} in layer "
                f"{odd}); tests of single heads need one width: steer whole layers at site attn"
            )
        self.W_O = output_weights(model)
        self.gram = self.W_O @ self.W_O.mT  # [layer, head, d_head, d_head]
        ev = torch.einsum("elhm,lhdm->elhd", heads.double(), self.W_O)
        raw = torch.einsum("elhd,lhdc->elhc", ev, torch.linalg.pinv(self.gram, hermitian=True))
        self.norm = self._length(raw)
        tiny = 1e-9 * self.norm.max().clamp_min(1e-30)  # a head that writes nothing has no direction
        self.unit = torch.where(self.norm[..., None] > tiny, raw / self.norm[..., None].clamp_min(1e-30), 0)

    def _length(self, z: Float[Tensor, "... layer head d_head"]) -> Float[Tensor, "... layer head"]:
        """Norm of z W_O."""
        return torch.einsum("...lhd,lhdc,...lhc->...lh", z, self.gram, z).clamp_min(0).sqrt()

    def direction(
        self, emotion: str, seed: int | None = None
    ) -> tuple[Float[Tensor, "layer head d_head"], Float[Tensor, "layer head"]]:
        """(a, norm) of every head: a W_O is the unit direction, norm the length of the vector. seed: a random one."""
        e = self.vectors.place(emotion)
        if seed is None:
            return self.unit[e], self.norm[e]
        draw = torch.Generator().manual_seed(seed)
        z = torch.randn(self.unit[e].shape, generator=draw, dtype=torch.float64, device="cpu")
        length = self._length(z)[..., None]
        return torch.where(length > 0, z / length.clamp_min(1e-30), 0), self.norm[e]

    def edits(
        self, changes: list[Change | None], mask: PositionMask, sources: list[Tensor | None] | None = None
    ) -> dict[Place, LayerEdit]:
        """Edits by place, where there is something to do. sources: z of the other run [layer, answer, head, d_head]."""
        n_layers, n_heads, d_head = self.W_O.shape[:3]
        edits: dict[Place, HeadEdit] = {}
        directions: dict[tuple[str, int | None], tuple[Tensor, Tensor]] = {}
        for row, change in enumerate(changes):
            if change is None:
                continue
            key = (change.emotion, change.random)
            if key not in directions:
                directions[key] = self.direction(*key)
            unit, norm = directions[key]
            for layer, head in change.where:
                need_place("layer", layer, n_layers)
                need_place("head", head, n_heads)
                if layer not in self.layers:
                    raise EmolabError(
                        f"layer {layer} of {self.model.name!r} has no attention heads; layers {span(self.layers)} have"
                    )
                if ("head", layer) not in edits:
                    edits["head", layer] = HeadEdit(len(changes), n_heads, d_head, mask)
                edit = edits["head", layer]
                direction = unit[layer, head]
                if change.op == "steer":
                    edit.shift[row, head] = change.dose * norm[layer, head] * direction
                elif change.op == "ablate":
                    edit.read[row, head] = self.gram[layer, head] @ direction
                    edit.write[row, head] = change.dose * direction
                else:
                    edit.swap[row, head] = 1
                    if change.random is not None:
                        edit.noise[row, head] = direction
        for (_, layer), edit in edits.items():
            if edit.swap.any():
                given = {row: source for row, source in enumerate(sources or []) if source is not None}
                size = max(source.shape[1] for source in given.values())
                edit.gram = self.gram[layer]
                edit.source = torch.zeros(len(changes), size, n_heads, d_head, dtype=torch.float32, device="cpu")
                for row, source in given.items():
                    edit.source[row, size - source.shape[1] :] = source[layer]
        return dict(edits)


@dataclass(frozen=True)
class Change:
    """What is done to which heads, or neurons. random: the seed of the control direction, None for the emotion's own.

    where: (layer, head) or (layer, neuron) pairs; of whole sublayers (layer, their place among the space's sites).
    """

    op: str
    emotion: str
    where: tuple[tuple[int, int], ...]
    dose: float = 1.0
    random: int | None = None


class HeadEdit(LayerEdit):
    """The edit of the heads of one layer, for every row: z [row, token, head, d_head] in, the same out."""

    def __init__(self, rows: int, n_heads: int, d_head: int, mask: PositionMask) -> None:
        super().__init__(rows, mask)
        zeros = torch.zeros(4, rows, n_heads, d_head, dtype=torch.float64, device="cpu")
        self.shift, self.read, self.write, self.noise = zeros
        self.swap = torch.zeros(rows, n_heads, dtype=torch.float32, device="cpu")
        self.source: Float[Tensor, "row answer head d_head"] | None = None  # ends where the rows end
        self.gram: Float[Tensor, "head d_head d_head"] | None = None

    def __call__(self, z: Float[Tensor, "row token head d_head"]) -> Float[Tensor, "row token head d_head"]:
        self.calls += 1
        _, keep = self.meet(z)
        if keep is False:
            return z
        for name in ("shift", "read", "write", "noise", "swap", "source", "gram"):
            value = getattr(self, name)
            if value is not None and (value.device != z.device or value.dtype != torch.float32):
                setattr(self, name, value.to(z.device, torch.float32))
        x = z.float()  # whatever the model's dtype, so that an ablated direction is really gone
        y = x + self.shift[:, None] - (x * self.read[:, None]).sum(-1, keepdim=True) * self.write[:, None]
        if self.source is not None and self.gram is not None:
            y = y + self._patch(x, self.source, self.gram)
        y = y.to(z.dtype)
        return y if keep is True else torch.where(keep[..., None], y, z)

    def keep_rows(self, rows: Tensor) -> None:
        if self.rows > 1:
            self.rows = len(rows)
            for name in ("shift", "read", "write", "noise", "swap", "source"):
                value = getattr(self, name)
                if value is not None:
                    setattr(self, name, value[rows.to(value.device)])

    def _patch(self, x: Tensor, source: Tensor, gram: Tensor) -> Tensor:
        n = source.shape[1]
        delta = source - x[:, -n:]
        plain = ~self.noise.any(-1)[:, None, :, None]
        size = torch.einsum("bshd,hdc,bshc->bsh", delta, gram, delta).clamp_min(0).sqrt()[..., None]
        delta = torch.where(plain, delta, size * self.noise[:, None]) * self.swap[:, None, :, None]
        return torch.nn.functional.pad(delta, (0, 0, 0, 0, x.shape[1] - n, 0))


@contextlib.contextmanager
def ablated(
    model: Model, vectors: EmotionVectors, emotion: str, heads: Heads, *, positions: str | slice = "all"
) -> Iterator[Model]:
    """Inside, every TransformerLens call runs without these heads' emotion directions; outside nothing remains.

    heads: (layer, head) pairs; each loses the component along its own vector and keeps all else. positions as in
    `Steering` in a plain forward call. Raises EmolabError for an unknown emotion or head and vectors without heads.
    """
    need_positions(positions)
    change = Change("ablate", emotion, head_pairs(heads))
    edits = HeadSpace(model, vectors).edits([change], PositionMask([positions]))
    with hooked(model, edits, plain=False):
        yield model
