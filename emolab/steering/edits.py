"""The mechanics of steering: which tokens an edit meets, the edit itself, its hooks on the bridge or the plain model.

`emolab.steering.steering` turns what is wanted into `Edit`s; generation runs them. Nothing here knows about emotions.

Guards are always on, and end in one EmolabError: every forward pass runs every edit once (`counted`), at the right
shape; where an edit first acts, the activation moves by what was asked (`Edit.check`, read when steering ends, so that
no token waits for it); and no hook is left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emolab.base.errors import EmolabError
from emolab.models.hooks import Place, at_sites
from emolab.models.model import Model
from emolab.models.sites import runs_plain

_FAR = 2**40  # beyond any position


class Window:
    """Which positions of each forward call are edited, row by row.

    positions: "generated", "all" or a slice (see `Steering`), one for all rows or one per row.
    prompts: (padding, own prompt tokens) of each row, where the caller knows them (generation); None in a plain forward
    call, whose positions are then those of the given tensor. cached: calls continue one another, as with a KV cache.
    fade: half-life in tokens, counted from the first edited position, as many as positions; infinite for none.
    """

    def __init__(
        self,
        positions: list[str | slice],
        prompts: list[tuple[int, int]] | None = None,
        cached: bool = False,
        fade: list[float] | None = None,
    ) -> None:
        self.positions, self.prompts, self.cached = positions, prompts, cached
        self.half_life = None if fade is None or np.isinf(fade).all() else np.array(fade, float)[:, None]
        # From here on, no row is left in its prompt and every token is edited.
        simple = self.half_life is None and all(p in ("generated", "all") for p in positions)
        self.all_from = max(pad + n - 1 for pad, n in prompts) if prompts and simple else _FAR
        self._key, self._found = None, (False, None)
        self._probe_key: Any = None
        self._probe: Any = None

    def keep_rows(self, rows: list[int]) -> None:
        """Only these rows go on."""
        if self.prompts is not None:
            self.prompts = [self.prompts[i] for i in rows]
        if len(self.positions) > 1:
            self.positions = [self.positions[i] for i in rows]
            self.half_life = None if self.half_life is None else self.half_life[rows]
        self._key = self._probe_key = None

    def keep(self, offset: int, size: int, device: torch.device) -> bool | Tensor:
        """True for all, False for none, else a mask [row or 1, size, 1]; worked out once for all layers of a pass."""
        if offset >= self.all_from:
            return True
        if self._key != (offset, size, device):
            self._key, self._found = (offset, size, device), self._compute(offset, size, device)
        return self._found[0]

    def weight(self, offset: int, size: int, device: torch.device) -> Tensor | None:
        """What is left of the edit by then, 1 at its first position: [row or 1, size, 1]; None where nothing fades."""
        if self.half_life is None:
            return None
        self.keep(offset, size, device)
        return self._found[1]

    def probe(self, offset: int, size: int, device: torch.device) -> tuple[int | Tensor, Tensor]:
        """The last edited position in this call, of all rows or of each, and the weight there; weight 0 for none."""
        if self._probe_key != (offset, size, device):
            self._probe_key, (keep, since) = (offset, size, device), self._positions(offset, size)
            at: np.ndarray = size - 1 - keep[:, ::-1].argmax(1)
            share = keep.any(1, keepdims=True).astype(np.float32)
            if self.half_life is not None:
                share = share * 0.5 ** (np.take_along_axis(since, at[:, None], 1).clip(min=0) / self.half_life)
            places = torch.from_numpy(at).to(device) if (at != at[0]).any() else int(at[0])
            self._probe = places, torch.from_numpy(share).float().to(device)
        return self._probe

    def _positions(self, offset: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Row by row, which positions are edited, and how many tokens each is away from the first edited one."""
        prompts = self.prompts or [(0, size)] * len(self.positions)
        positions = self.positions * len(prompts) if len(self.positions) == 1 else self.positions
        spans = np.array([(pad, *_span(p, n)) for p, (pad, n) in zip(positions, prompts, strict=True)])
        pad, start, stop, step = (column[:, None] for column in spans.T)
        own = np.arange(offset, offset + size)[None] - pad
        return (own >= start) & (own < stop) & ((own - start) % step == 0), own - start

    def _compute(self, offset: int, size: int, device: torch.device) -> tuple[bool | Tensor, Tensor | None]:
        (keep, since), weight = self._positions(offset, size), None
        if self.half_life is not None:
            left = 0.5 ** (since.clip(min=0) / self.half_life)
            weight = torch.from_numpy(left[..., None]).float().to(device)
        if keep.all() or not keep.any():
            return bool(keep.all()), weight
        return torch.from_numpy(keep[..., None]).to(device), weight


def _span(positions: Any, n: int) -> tuple[int, int, int]:
    """(start, stop, step) in a row's own tokens, of which n are the prompt."""
    if positions == "all":
        return -_FAR, _FAR, 1
    if positions == "generated":
        return n - 1, _FAR, 1
    start, stop = (x if x is None or x >= 0 else max(0, x + n) for x in (positions.start, positions.stop))
    return start or 0, _FAR if stop is None else stop, positions.step or 1


class Edit:
    """The edit at one site of one layer, for every row: x [row, token, d_model] in, the same out."""

    def __init__(self, b: Tensor, a: Tensor, back: Tensor, window: Window) -> None:
        self.b, self.a, self.back, self.window = b[:, None], a, back, window
        self.low_rank = bool(back.any())
        self.calls, self.seen = 0, 0
        self.norms: Tensor | None = None  # [5, row], once it has acted; see `_note`
        self._steady: torch.Size | None = None  # of activations that, from here on, b is added to at every token

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.shape == self._steady:  # token by token Python costs as much as a small model: nothing is looked at twice
            return x + self.b
        offset = self.seen if self.window.cached else 0
        if x.ndim != 3 or x.shape[2] != self.b.shape[2]:
            raise EmolabError(
                f"a steered activation has shape {list(x.shape)}, expected [row, token, {self.b.shape[2]}]; this "
                "architecture hands on something else there: choose another site"
            )
        self.seen += x.shape[1]
        if len(self.b) not in (1, len(x)):
            raise EmolabError(f"{len(self.b)} steerings for a batch of {len(x)}; expected one, or one per row")
        keep = self.window.keep(offset, x.shape[1], x.device)
        if keep is False:
            return x
        if self.b.dtype != x.dtype or self.b.device != x.device:
            self.b, self.a, self.back = self.b.to(x), self.a.to(x.device), self.back.to(x.device)
        weight = self.window.weight(offset, x.shape[1], x.device)
        y = x + (self.b if weight is None else (self.b * weight).to(x.dtype))
        if self.low_rank:  # in float32 whatever the model's dtype, so that an ablated direction is really gone
            change = x.float() @ self.a @ self.back
            y = y + (change if weight is None else change * weight).to(x.dtype)
        y = y if keep is True else torch.where(keep, y, x)
        if self.norms is None:
            self._note(x, y, offset)
        if self.window.cached and offset >= self.window.all_from and not self.low_rank:
            self._steady = x.shape
        return y

    @torch.no_grad()
    def _note(self, x: Tensor, y: Tensor, offset: int) -> None:
        """Keep norms of each row's last edited activation, before and after, its step, what was asked, and the rest.

        Only that, and once: the device goes on, nobody waits for numbers before the steering ends.
        """
        at, weight = self.window.probe(offset, x.shape[1], x.device)
        rows = slice(None) if isinstance(at, int) else torch.arange(len(x), device=x.device)
        before, after, asked = x[rows, at].float(), y[rows, at].float(), self.b[:, 0].float()
        if self.low_rank:
            asked = asked + (before[:, None] @ self.a @ self.back)[:, 0]
        asked, step = (asked * weight).expand_as(before), after - before
        self.norms = torch.stack([before, after, step, asked, step - asked]).norm(dim=2)

    def keep_rows(self, rows: Tensor) -> None:
        """Only these rows go on; one edit for all rows stays."""
        if len(self.b) > 1:
            self.b, self.a, self.back = (t[rows.to(t.device)] for t in (self.b, self.a, self.back))

    def check(self, place: str) -> None:
        """Raise EmolabError where the first activations that this met did not move by what was asked."""
        if self.norms is None:
            return
        norms = self.norms.cpu().double().numpy()
        # Sums are rounded in the model's dtype; products, where fast ones are allowed, to a thousandth.
        off = norms[4] - max(2 * torch.finfo(self.b.dtype).eps, 1e-3) * norms[[0, 1, 3]].sum(0)
        _, _, step, asked, _ = norms[:, off.argmax()]  # of NaN, too, argmax says where
        if not np.isfinite(norms).all():
            raise EmolabError(
                f"the steered activation at {place} is not finite (NaN or infinity, {self.b.dtype}); use a smaller "
                "dose, or load the model in bfloat16 or float32"
            )
        if off.max() > 0:
            raise EmolabError(
                f"steering moved the activation at {place} by a step of norm {step:.4g}, asked was one of {asked:.4g}, "
                f"beyond what {self.b.dtype} rounds; these texts are not steered as asked"
            )


@contextlib.contextmanager
def counted(root: Any, edits: Mapping[tuple[str, int], Any]) -> Iterator[list[int]]:
    """Inside, a whole forward pass of `root` that does not run every edit exactly once raises EmolabError.

    Passes that end early (stop_at_layer, an exception) are not looked at. Yields a list, empty until the model runs.
    """
    before: list[int] = []

    def start(module: Any, args: Any) -> None:
        before[:] = [edit.calls for edit in edits.values()]

    def end(module: Any, args: Any, output: Any) -> None:
        if [edit.calls - 1 for edit in edits.values()] != before:
            times = {place: edit.calls - n for (place, edit), n in zip(edits.items(), before, strict=True)}
            _refuse_silent([place for place, n in times.items() if not n])
            (site, layer), n = next((place, n) for place, n in times.items() if n != 1)
            raise EmolabError(
                f"the steering hook at {site} of layer {layer} ran {n} times in one forward pass, expected once: this "
                "architecture passes there more than once; choose another site or other layers"
            )

    with contextlib.ExitStack() as stack:
        if edits:
            stack.callback(root.register_forward_pre_hook(start).remove)
            stack.callback(root.register_forward_hook(end).remove)
        yield before


@contextlib.contextmanager
def hooked(model: Model, edits: Mapping[Place, Any], *, plain: bool | None = None) -> Iterator[Any]:
    """Put the edits on the model and take off exactly these, whatever happens; yields the model to run.

    plain: as `emolab.models.at_sites` takes it. Raises EmolabError for what the guards find (see the module), and
    where the model ran but an edit never did.
    """
    plain = runs_plain(model, {site for site, _ in edits}) if plain is None else plain
    root = model.hf if plain else model.bridge.original_model
    with counted(root, edits) as ran, at_sites(model, edits.items(), plain=plain) as runner:
        yield runner
    if ran:
        _refuse_silent([place for place, edit in edits.items() if not edit.calls])
    for (site, layer), edit in edits.items():
        if isinstance(edit, Edit):
            edit.check(f"{site} of layer {layer}")


def keep_rows(edits: Mapping[tuple[str, int], Edit], rows: Tensor) -> None:
    """The batch goes on with these rows only: its edits and their windows, too."""
    for window in {id(edit.window): edit.window for edit in edits.values()}.values():
        window.keep_rows(rows.tolist())
    for edit in edits.values():
        edit.keep_rows(rows)


def _refuse_silent(places: list[tuple[str, int]]) -> None:
    if places:
        raise EmolabError(
            f"the model ran, but its steering hooks at {', '.join(f'{s} of layer {i}' for s, i in places)} never did; "
            "run all chosen layers (no stop_at_layer), leave its hooks alone meanwhile, or choose other layers"
        )
