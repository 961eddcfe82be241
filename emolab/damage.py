"""Damage: how far a change of the model moves its next-token probabilities on text that it would have written anyway.

The yardstick on which methods of different kinds (a vector, an instruction, fine-tuning) are set to the same strength
before their effects are compared (iso-KL).

>>> from emolab.damage import dose_at_damage, next_token_kl, p95_kl
>>> kls = next_token_kl(model, prompts, neutral_answers, steering=Steering(vectors, {"joy": 1.0}))
>>> p95_kl(kls)                                                         # nats
>>> dose, kl = dose_at_damage(lambda a: p95_kl(next_token_kl(model, prompts, texts, steering=joy(a))), target=1.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import root_scalar

from emolab.errors import EmolabError
from emolab.generation import _per_row
from emolab.logprobs import plan_texts, text_logits
from emolab.models import Model
from emolab.steering import Steering


def next_token_kl(
    model: Model,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    steering: Steering | list[Steering | None] | None = None,
    other: Model | None = None,
    other_prompts: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> list[Float[np.ndarray, " token"]]:
    """KL(changed || plain) in nats at every token of each text, teacher forced: one array a text.

    >>> prompts = render_prompts(model, queries)
    >>> next_token_kl(model, prompts, texts, steering=Steering(vectors, {"joy": 1.0}))     # of steering
    >>> next_token_kl(model, prompts, texts, other=joyful)                                 # of fine-tuning
    >>> next_token_kl(model, prompts, texts, other_prompts=render_prompts(model, queries, "joy"))   # of an instruction

    Plain is `model` after `prompts`; changed is `other` (default the same model) under `steering` after `other_prompts`
    (default the same ones), all complete (`render_prompts`). texts: the plain model's own answers to held-back queries,
    so that both are asked about text natural to the plain one. Of the two directions this is the one that is large
    where the changed model would write what the plain one never does, as broken text is; published iso-KL calibrations
    use it, too. A text without tokens gives an empty array, a token that nothing precedes NaN. Hooks
    on the bridge (inside `steered`) count on both sides. Raises EmolabError for lists of different length, models of
    different vocabulary, and as `generate` does.
    """
    changed, others = other or model, list(prompts if other_prompts is None else other_prompts)
    prompts, texts = list(prompts), list(texts)
    if not len(prompts) == len(texts) == len(others):
        sizes = f"{len(prompts)} prompts, {len(texts)} texts and {len(others)} other_prompts"
        raise EmolabError(f"{sizes}; expected as many of each")
    if changed.bridge.cfg.d_vocab != model.bridge.cfg.d_vocab:
        raise EmolabError(f"{model.name!r} and {changed.name!r} have different vocabularies; no KL between them")
    rows = _per_row(changed, steering, len(prompts), allow_mismatch=False)
    out: list[np.ndarray] = [np.empty(0)] * len(prompts)
    sizes = [len(ids) for ids in model.tokenizer(texts, add_special_tokens=False).input_ids] if texts else []
    longer = [max(pair, key=len) for pair in zip(prompts, others, strict=True)]
    for index in plan_texts(model, longer, texts, batch_size):
        pairs = {(prompts[i], texts[i]): None for i in index}  # a grid of settings asks about the same texts
        once = text_logits(model, [prompt for prompt, _ in pairs], [text for _, text in pairs], [])
        plain = dict(zip(pairs, once, strict=True))
        steerings = [rows[i] for i in index] if rows else []
        new = text_logits(changed, [others[i] for i in index], [texts[i] for i in index], steerings)
        for i, p in zip(index, new, strict=True):
            q = plain[prompts[i], texts[i]]
            n = min(len(p), len(q))
            p, q = p[len(p) - n :].float().log_softmax(-1), q[len(q) - n :].float().log_softmax(-1)
            values = (p.exp() * (p - q)).sum(-1).clamp_min(0).double().cpu().numpy()
            # A text at the very start of its row: nothing predicts its first token.
            out[i] = np.concatenate([np.full(sizes[i] - n, np.nan), values])
    return out


def p95_kl(kls: Sequence[Float[np.ndarray, " token"]]) -> float:
    """The 95th percentile over all tokens of all texts, in nats; NaN where there is none.

    Not the mean: a text breaks at its worst tokens, and most tokens of any text are hardly moved.

    >>> p95_kl([np.array([0.0, 1.0]), np.array([2.0])])
    1.9
    """
    values = np.concatenate([np.asarray(x, dtype=float) for x in kls]) if len(kls) else np.empty(0)
    values = values[~np.isnan(values)]
    return float(np.quantile(values, 0.95)) if len(values) else float("nan")


def dose_at_damage(
    damage: Callable[[float], float], target: float, *, start: float = 1.0, tolerance: float = 0.02
) -> tuple[float, float]:
    """(dose, damage): the positive dose at which `damage(dose)`, which grows, is `target`, within `tolerance` of it.

    >>> dose, found = dose_at_damage(lambda dose: dose**2, 4.0)
    >>> round(dose, 1), round(found, 1)
    (2.0, 4.0)

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
        found = math.log(max(value, 1e-12) / target)
        return 0.0 if abs(found) <= math.log1p(tolerance) else found

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
