"""The mechanics of steering: which tokens an edit meets, the edit itself, its hooks on the bridge or the plain model.

`emolab.steering` turns what is wanted into `Edit`s; generation runs them. Nothing here knows about emotions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emolab.errors import EmolabError
from emolab.models import Model, hf_modules, site_hooks

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
        self._key, self._found = None, (False, None)

    def keep(self, offset: int, size: int, device: torch.device) -> bool | Tensor:
        """True for all, False for none, else a mask [row or 1, size, 1]; worked out once for all layers of a pass."""
        if self._key != (offset, size, device):
            self._key, self._found = (offset, size, device), self._compute(offset, size, device)
        return self._found[0]

    def weight(self, offset: int, size: int, device: torch.device) -> Tensor | None:
        """What is left of the edit by then, 1 at its first position: [row or 1, size, 1]; None where nothing fades."""
        if self.half_life is None:
            return None
        self.keep(offset, size, device)
        return self._found[1]

    def _compute(self, offset: int, size: int, device: torch.device) -> tuple[bool | Tensor, Tensor | None]:
        prompts = self.prompts or [(0, size)] * len(self.positions)
        positions = self.positions * len(prompts) if len(self.positions) == 1 else self.positions
        spans = np.array([(pad, *_span(p, n)) for p, (pad, n) in zip(positions, prompts, strict=True)])
        pad, start, stop, step = (column[:, None] for column in spans.T)
        own = np.arange(offset, offset + size)[None] - pad
        keep, weight = (own >= start) & (own < stop) & ((own - start) % step == 0), None
        if self.half_life is not None:
            left = 0.5 ** ((own - start).clip(min=0) / self.half_life)
            weight = torch.from_numpy(left[..., None]).float().to(device)
        if keep.all() or not keep.any():
            return bool(keep.all()), weight
        return torch.from_numpy(keep[..., None]).to(device), weight


def _span(positions: str | slice, n: int) -> tuple[int, int, int]:
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

    def __call__(self, x: Tensor) -> Tensor:
        offset = self.seen if self.window.cached else 0
        self.calls += 1
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
        return y if keep is True else torch.where(keep, y, x)


@contextlib.contextmanager
def hooked(model: Model, edits: dict[tuple[str, int], Edit], *, plain: bool) -> Iterator[None]:
    """Put the edits on `model.hf` (plain) or on `model.bridge`; take off exactly these, whatever happens.

    Raises EmolabError on leaving where the model ran but an edit did not.
    """
    calls = []
    with contextlib.ExitStack() as stack:
        if plain:
            modules = {site: hf_modules(model, site) for site, _ in edits}
            for (site, layer), edit in edits.items():
                handle = modules[site][layer][0].register_forward_hook(_module_hook(edit))
                stack.callback(handle.remove)
        else:
            handle = model.bridge.original_model.register_forward_pre_hook(lambda module, args: calls.append(1))
            stack.callback(handle.remove)
            names = {site: site_hooks(model, site) for site, _ in edits}
            pairs = [(names[site][layer], _lens_hook(edit)) for (site, layer), edit in edits.items()]
            stack.enter_context(model.bridge.hooks(fwd_hooks=pairs))
        yield
    silent = [f"{site} of layer {layer}" for (site, layer), edit in edits.items() if not edit.calls]
    if silent and (plain or calls):
        raise EmolabError(
            f"the model ran, but its steering hooks at {', '.join(silent)} never did; run all "
            "chosen layers (no stop_at_layer) or choose other layers"
        )


def _module_hook(edit: Edit) -> Any:
    def hook(module: Any, args: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return hook


def _lens_hook(edit: Edit) -> Any:
    def run(x: Tensor, hook: Any) -> Tensor:  # TransformerLens passes its second argument by this name
        return edit(x)

    return run
