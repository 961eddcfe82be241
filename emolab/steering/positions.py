"""Which tokens an edit meets: positions of every row, prompt or answer, in a batch, with and without a cache.

>>> PositionMask(["generated", "all"], prompts=[(0, 3), (1, 2)]).keep(0, 3, torch.device("cpu"))[..., 0]
tensor([[False, False,  True],
        [ True,  True,  True]])
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emolab.base.errors import EmolabError
from emolab.models.roles import ROLES

_FAR = 2**40  # beyond any position


class PositionMask:
    """Which positions of each forward call are edited, row by row.

    positions: "generated", "prompt", "user", "assistant", "all" or a slice (see `Steering`), one or one per row.
    prompts: (padding, own prompt tokens) of each row, where the caller knows them (generation); None in a plain forward
    call, whose positions are then those of the given tensor. cached: calls continue one another, as with a KV cache.
    fade: half-life in tokens, counted from the first edited position, as many as positions; infinite for none.
    roles: who says each token of each row's prompt (`emolab.models.roles`). Raises EmolabError for a role or a fade
    where prompts are not known.
    """

    def __init__(
        self,
        positions: list[str | slice],
        prompts: list[tuple[int, int]] | None = None,
        cached: bool = False,
        fade: list[float] | None = None,
        roles: list[list[str | None]] | None = None,
    ) -> None:
        self.positions = positions
        self.prompts = prompts
        self.cached = cached
        self.roles = roles
        self.half_life = None if fade is None or np.isinf(fade).all() else np.array(fade, float)[:, None]
        unknown = ["fade counts generated tokens"] if prompts is None and self.half_life is not None else []
        unknown += ["roles are those of a prompt"] if roles is None and any(p in ROLES for p in positions) else []
        if unknown:
            raise EmolabError(
                f"{unknown[0]}, which a plain forward call does not know; give this steering to emolab.generate (or "
                "token_logprobs) instead of `steered`"
            )
        # From here on, no row is left in its prompt and every token is edited.
        simple = self.half_life is None and all(p in ("generated", "all") for p in positions)
        self.all_from = max(pad + n - 1 for pad, n in prompts) if prompts and simple else _FAR
        self._call = None  # that `_computed` is of
        self._computed = (False, None)

    def keep_rows(self, rows: list[int]) -> None:
        """Only these rows go on."""
        if self.prompts is not None:
            self.prompts = [self.prompts[i] for i in rows]
        if self.roles is not None:
            self.roles = [self.roles[i] for i in rows]
        if len(self.positions) > 1:
            self.positions = [self.positions[i] for i in rows]
            self.half_life = None if self.half_life is None else self.half_life[rows]
        self._call = None

    def keep(self, offset: int, size: int, device: torch.device) -> bool | Tensor:
        """True for all, False for none, else a mask [row or 1, size, 1]; worked out once for all layers of a pass."""
        if offset >= self.all_from:
            return True
        if self._call != (offset, size, device):
            self._call = (offset, size, device)
            self._computed = self._compute(offset, size, device)
        return self._computed[0]

    def weight(self, offset: int, size: int, device: torch.device) -> Tensor | None:
        """What is left of the edit by then, 1 at its first position: [row or 1, size, 1]; None where nothing fades."""
        if self.half_life is None:
            return None
        self.keep(offset, size, device)
        return self._computed[1]

    def _compute(self, offset: int, size: int, device: torch.device) -> tuple[bool | Tensor, Tensor | None]:
        prompts = self.prompts or [(0, size)] * len(self.positions)
        positions = self.positions * len(prompts) if len(self.positions) == 1 else self.positions
        spans = np.array([(pad, *_span(p, n)) for p, (pad, n) in zip(positions, prompts, strict=True)])
        pad, start, stop, step = (column[:, None] for column in spans.T)
        position = np.arange(offset, offset + size)[None] - pad  # among a row's own tokens
        keep = (position >= start) & (position < stop) & ((position - start) % step == 0)
        for row, role in enumerate(positions):
            if role in ROLES and self.roles is not None:
                spoken = [place for place, who in enumerate(self.roles[row]) if who == role]
                last = len(self.roles[row]) - 1 if role == "assistant" else _FAR  # the token that begins the answer
                keep[row] = np.isin(position[row], spoken) | (position[row] >= last)
        weight = None
        if self.half_life is not None:
            left = 0.5 ** ((position - start).clip(min=0) / self.half_life)
            weight = torch.from_numpy(left[..., None]).float().to(device)
        if keep.all() or not keep.any():
            return bool(keep.all()), weight
        return torch.from_numpy(keep[..., None]).to(device), weight


def _span(positions: str | slice, n: int) -> tuple[int, int, int]:
    """(start, stop, step) in a row's own tokens, of which n are the prompt."""
    if positions in ("all", *ROLES):
        return -_FAR, _FAR, 1
    if positions == "prompt":
        return 0, n, 1
    if isinstance(positions, str):  # "generated"
        return n - 1, _FAR, 1
    start, stop = (x if x is None or x >= 0 else max(0, x + n) for x in (positions.start, positions.stop))
    return start or 0, _FAR if stop is None else stop, positions.step or 1
