"""The mechanics of steering: edits, and their hooks on the bridge or the plain model.

`emolab.steering.steering` turns what is wanted into `AffineEdit`s, `emolab.steering.head_edits` into those of single
heads; generation runs them. Nothing here knows about emotions.

Two guards are always on, and end in one EmolabError: every forward pass runs every edit once, and where an edit first
acts, what it hands on is finite (read when steering ends, so that no token waits for it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from emolab.base.errors import EmolabError
from emolab.models.finite import not_finite
from emolab.models.hooks import Place, at_sites, runs_plain
from emolab.models.model import Model
from emolab.steering.positions import PositionMask


class LayerEdit:
    """What the edits of layers and of heads share: they count their calls, and change the positions of a mask alone.

    rows: how many edits there are, one for all rows or one per row.
    """

    def __init__(self, rows: int, mask: PositionMask) -> None:
        self.rows = rows
        self.mask = mask
        self.calls = 0
        self.seen = 0  # tokens of earlier calls
        self.finite: Tensor | None = None  # whether what it was given, and handed on, when it first acted is

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def keep_rows(self, rows: Tensor) -> None:
        """Only these rows go on; one edit for all rows stays."""
        raise NotImplementedError

    def meet(self, x: Tensor) -> tuple[int, bool | Tensor]:
        """The first position of this call, and which of its positions are edited."""
        offset = self.seen if self.mask.cached else 0
        self.seen += x.shape[1]
        if self.rows not in (1, len(x)):
            raise EmolabError(f"{self.rows} steerings for a batch of {len(x)}; expected one, or one per row")
        return offset, self.mask.keep(offset, x.shape[1], x.device)


class AffineEdit(LayerEdit):
    """x + shift + (x read) write at one site of one layer, for every row: x [row, token, d_model] in, the same out."""

    def __init__(
        self,
        shift: Float[Tensor, "row d_model"],
        read: Float[Tensor, "row d_model k"],
        write: Float[Tensor, "row k d_model"],
        mask: PositionMask,
    ) -> None:
        super().__init__(len(shift), mask)
        self.shift = shift[:, None]
        self.read = read
        self.write = write
        self.low_rank = bool(write.any())
        self.only_adds = not self.low_rank
        self._steady: torch.Size | None = None  # of activations that, from here on, are shifted at every token

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.shape == self._steady:  # token by token Python costs as much as a small model: nothing is looked at twice
            return x + self.shift
        if x.shape[2] != self.shift.shape[2]:
            raise EmolabError(
                f"a steered activation has shape {list(x.shape)}, expected [row, token, {self.shift.shape[2]}]; this "
                "architecture hands on something else there: choose another site"
            )
        offset, keep = self.meet(x)
        if keep is False:
            return x
        if self.shift.dtype != x.dtype or self.shift.device != x.device:
            self._move(x)
        y = self.changed(x, self.mask.weight(offset, x.shape[1], x.device))
        y = y if keep is True else torch.where(keep, y, x)
        if self.finite is None:
            self.finite = torch.stack([x[:, -1], y[:, -1]]).detach().isfinite().flatten(1).all(1)
        if self.mask.cached and offset >= self.mask.all_from and self.only_adds:
            self._steady = x.shape
        return y

    def changed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """x as edited at every token; weight: what is left of the edit by then."""
        y = x + (self.shift if weight is None else (self.shift * weight).to(x.dtype))
        if self.low_rank:  # in float32 whatever the model's dtype, so that an ablated direction is really gone
            change = self.components(x) @ self.write
            y = y + (change if weight is None else change * weight).to(x.dtype)
        return y

    def components(self, x: Tensor) -> Float[Tensor, "row token k"]:
        return x.float() @ self.read

    def _move(self, x: Tensor) -> None:
        self.shift = self.shift.to(x)
        self.read = self.read.to(x.device)
        self.write = self.write.to(x.device)

    def keep_rows(self, rows: Tensor) -> None:
        if self.rows > 1:
            self.rows = len(rows)
            self.shift, self.read, self.write = (t[rows.to(t.device)] for t in (self.shift, self.read, self.write))


class Condition:
    """Whether a token's projection, read at one site of one layer, lies between bounds; rows without bounds: always.

    read [row, d_model], above and below [row]; `met` [row, token, 1] is that of the pass that runs now.
    """

    def __init__(
        self, read: Float[Tensor, "row d_model"], above: Float[Tensor, " row"], below: Float[Tensor, " row"]
    ) -> None:
        self.read = read[:, None]
        self.above = above[:, None, None]
        self.below = below[:, None, None]
        self.met = torch.tensor(True, device="cpu")

    def look(self, x: Tensor) -> None:
        """Keep which tokens of x meet it."""
        self.read, self.above, self.below = (t.to(x.device) for t in (self.read, self.above, self.below))
        projection = (x.float() * self.read).sum(-1, keepdim=True)
        self.met = (projection > self.above) & (projection < self.below)

    def keep_rows(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self.read, self.above, self.below = (t[rows.to(t.device)] for t in (self.read, self.above, self.below))


class BentEdit(AffineEdit):
    """An `AffineEdit` some of whose rows keep their norm, are edited above a ceiling alone, or under a condition.

    turned [row]: x + shift is brought back to the norm of x. capped [row]: the components x read that are below those
    of the shift stay, the others become these. reads: the condition that is read here, before the edit. needs: those
    under which rows are edited here; they have been read in this pass.
    """

    reads: Condition | None = None
    needs: tuple[Condition, ...] = ()

    def __init__(self, affine: AffineEdit, turned: Tensor, capped: Tensor) -> None:
        super().__init__(affine.shift[:, 0], affine.read, affine.write, affine.mask)
        self.only_adds = False
        self.turned = turned[:, None, None].to(self.shift.device)
        self.capped = capped[:, None, None].to(self.shift.device)
        self.ceiling = self.shift @ self.read
        self.shift = self.shift.masked_fill(self.capped, 0)

    def changed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if self.reads is not None:
            self.reads.look(x)
        y = torch.where(self.turned, self._turn(x, weight), super().changed(x, weight))
        for condition in self.needs:
            y = torch.where(condition.met.to(x.device), y, x)
        return y

    def components(self, x: Tensor) -> Float[Tensor, "row token k"]:
        along = super().components(x)
        return torch.where(self.capped, (along - self.ceiling).clamp_min(0), along)

    def _turn(self, x: Tensor, weight: Tensor | None) -> Tensor:
        wide = x.float()
        turned = wide + (self.shift if weight is None else self.shift * weight)
        norm = turned.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(turned.dtype).tiny)
        return (turned * (wide.norm(dim=-1, keepdim=True) / norm)).to(x.dtype)

    def _move(self, x: Tensor) -> None:
        super()._move(x)
        self.turned, self.capped, self.ceiling = (t.to(x.device) for t in (self.turned, self.capped, self.ceiling))

    def keep_rows(self, rows: Tensor) -> None:
        if self.rows > 1:
            self.turned, self.capped, self.ceiling = (
                t[rows.to(t.device)] for t in (self.turned, self.capped, self.ceiling)
            )
            if self.reads is not None:
                self.reads.keep_rows(rows)
        super().keep_rows(rows)


def keep_rows(edits: Mapping[Place, LayerEdit], rows: Tensor) -> None:
    """The batch goes on with these rows only: its edits and their masks, too."""
    for mask in {edit.mask for edit in edits.values()}:
        mask.keep_rows(rows.tolist())
    for edit in edits.values():
        edit.keep_rows(rows)


@contextlib.contextmanager
def hooked(model: Model, edits: Mapping[Place, LayerEdit], *, plain: bool | None = None) -> Iterator[torch.nn.Module]:
    """Put the edits on the model and take off exactly these, whatever happens; yields the model to run.

    plain: as `emolab.models.at_sites` takes it. Raises EmolabError after a whole forward pass that did not run every
    edit exactly once, and on leaving where an edit never ran or what it first handed on is not finite.
    """
    plain = runs_plain(model, {site for site, _ in edits}) if plain is None else plain
    root = model.hf if plain else model.bridge.original_model
    before: dict[Place, int] = {}  # calls until the pass that runs now; empty until the model runs

    def start(module, args) -> None:
        before.update({place: edit.calls for place, edit in edits.items()})

    def end(module, args, output) -> None:  # not of passes that end early (stop_at_layer, an exception)
        for place, edit in edits.items():
            _need_once(place, edit.calls - before[place])

    with contextlib.ExitStack() as stack:
        if edits:
            stack.callback(root.register_forward_pre_hook(start).remove)
            stack.callback(root.register_forward_hook(end).remove)
        yield stack.enter_context(at_sites(model, edits.items(), plain=plain))
    for place in before:
        edit = edits[place]
        if not edit.calls:
            _need_once(place, 0)
        before_it, behind_it = (True, True) if edit.finite is None else edit.finite.tolist()
        if not behind_it:
            where = f" at {place[0]} of layer {place[1]}"
            raise not_finite(model, "the steered activations", where=where, steered=before_it)


def _need_once(place: Place, times: int) -> None:
    if times != 1:
        raise EmolabError(
            f"the steering hook at {place[0]} of layer {place[1]} ran {times} times in one forward pass, expected "
            "once; run all chosen layers (no stop_at_layer), leave the model's hooks alone meanwhile, or choose "
            "another site or other layers, where the architecture passes once"
        )
