"""Damage: how far a change of the model moves its next-token probabilities on text that it would have written anyway.

The yardstick on which methods of different kinds (a vector, an instruction, fine-tuning) are set to the same strength
before their effects are compared (iso-KL).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import root_scalar

from emolab.base.errors import EmolabError


def dose_at_damage(
    damage: Callable[[float], float], target: float, *, start: float = 1.0, tolerance: float = 0.02
) -> tuple[float, float]:
    """(dose, damage): the positive dose at which `damage(dose)`, which grows, is `target`, within `tolerance` of it.

    >>> dose, kl = dose_at_damage(lambda a: p95_kl(next_token_kl(model, prompts, texts, steering=joy(a))), target=1.0)

    Doubles or halves from `start` until the target lies between two doses, then solves on logarithmic axes, where
    damage is nearly a line. Raises EmolabError for a target that is not positive, a damage that is no number, and where
    twenty doublings do not reach the target.
    """
    if not 0 < target < math.inf:
        raise EmolabError(f"the damage to reach is {target}; expected a positive number of nats")
    seen: dict[float, float] = {}

    def gap(log_dose: float) -> float:
        """log(damage / target); exactly 0 where close enough, so that the solver stops."""
        if log_dose not in seen:
            seen[log_dose] = float(damage(math.exp(log_dose)))
        value = seen[log_dose]
        if math.isnan(value):
            raise EmolabError(f"the damage at dose {math.exp(log_dose):.3g} is not a number; no dose can be set by it")
        distance = math.log(max(value, 1e-12) / target)
        return 0.0 if abs(distance) <= math.log1p(tolerance) else distance

    here = math.log(start)
    side = gap(here)
    for _ in range(20):
        before = here
        if side:
            here = before - math.copysign(math.log(2), side)
        if side * gap(here) <= 0:
            break
    else:
        raise EmolabError(
            f"damage {target:.3g} is out of reach: at dose {math.exp(here):.3g} it is {seen[here]:.3g}; "
            "choose another target, or check that this method changes the model at all"
        )
    if gap(before) and gap(here):
        here = float(root_scalar(gap, bracket=(before, here), method="brentq", xtol=1e-4).root)
    elif not gap(before):
        here = before
    gap(here)
    return math.exp(here), seen[here]
