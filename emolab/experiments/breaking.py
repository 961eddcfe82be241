"""Where text breaks: the alpha that costs one nat at the worst tokens, the unit in which settings can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
from torch import Tensor

from emolab.answers.generation import generate
from emolab.answers.logprobs import next_token_kl, p95_kl
from emolab.answers.queries import query_table
from emolab.base.errors import EmolabError, NumberError, need_model
from emolab.base.folders import alone
from emolab.base.storage import digest, kept, user_path
from emolab.experiments.sweeps import identity
from emolab.models.model import Model
from emolab.models.prompts import render_prompts
from emolab.steering.steering import Steering
from emolab.vectors.vectors import EmotionVectors

NATS = 1.0  # next-token KL at the worst 5 % of tokens, at which text is said to break
TOLERANCE = 0.1  # of NATS, relative: the alpha is then right within 5 %, far less than doses are apart
_TOKENS = 40  # of each text that the KL is read on
_ROUNDS = 16
Held = dict[tuple[str, str], Tensor]  # the unsteered model's logits at each (prompt, text)
_LEVELS_OFF = 5  # passes on one side of the target after which KL is taken not to grow with the square of alpha


@alone
def find_breaking(
    model: Model,
    steering: Steering | Sequence[Steering],
    queries: pd.DataFrame | Sequence[str] | str,
    *,
    texts: Sequence[str] | None = None,
    out: str | Path | None = None,
) -> EmotionVectors:
    """The vectors of `steering`, which now know at which alpha each of its settings breaks text, emotion by emotion.

    >>> vectors = emolab.find_breaking(model, Steering(vectors, {"joy": 1.0}, site="attn"), training_queries)
    >>> vectors.meta["breaking"]
    {'site=attn layers=0-29 part=whole op=add positions=generated': {'joy': 0...}}
    >>> emolab.Steering(vectors, {"joy": 0.6}, site="attn", unit="breaking")

    Text breaks where the next-token KL(steered || unsteered) at the worst 5 % of tokens is one nat, on the model's own
    unsteered answers to these queries: training questions, never those that a result is reported on. steering says
    where and which emotions; the size of its doses plays no part. texts: unsteered answers, where they are at hand;
    else they are written. out: a folder in which the alphas are kept, a file for each setting and its emotions. KL
    grows about with the square of alpha, so that a few passes of all emotions at once find alpha within 5 %.

    Raises EmolabError for op "ablate" (its alpha is a share) and "cap" (which does less the larger alpha is), and for
    an emotion that moves nothing at any alpha.
    """
    need_model(model)
    steerings = [steering] if isinstance(steering, Steering) else list(steering)
    if any(one.op in ("ablate", "cap") for one in steerings):
        raise EmolabError(
            'op "ablate" removes a share, from 0 to 1, and "cap" does less the larger alpha is; only op "add", '
            '"rotate" and "clamp" have a breaking alpha'
        )
    asked = list(query_table(queries)["query"])
    prompts = render_prompts(model, asked)

    @cache
    def written() -> list[str]:
        return list(texts or generate(model, asked, max_new_tokens=_TOKENS))

    settings: dict[str, Steering] = {}  # the emotions of a setting are read in the same passes
    for one in steerings:
        doses = settings[one.breaking_key].doses if one.breaking_key in settings else {}
        settings[one.breaking_key] = replace(one, doses=doses | one.doses, unit="vector")
    vectors = steerings[0].vectors
    breaking = dict(vectors.meta.get("breaking", {}))
    held: Held = {}
    for key, one in settings.items():
        resolved = replace(one, doses=one.in_vectors())  # the shared part is one direction, whatever the emotions
        of = {
            "fingerprint": model.fingerprint,
            "dtype": str(model.dtype),
            "vectors": identity([resolved]),
            "setting": key,
            "emotions": list(resolved.doses),
            "texts": digest([*prompts, *(texts or ["written"])]),
        }

        def solve(steering: Steering = resolved) -> pd.DataFrame:
            alphas = _solve(model, steering, prompts, written(), held)
            return pd.DataFrame({"emotion": list(alphas), "alpha": list(alphas.values())})

        name = f"breaking-{digest([str(of)])[:12]}.parquet"
        found = solve() if out is None else kept(user_path(out) / name, of, solve)
        alphas = dict(zip(found["emotion"], map(float, found["alpha"]), strict=True))
        breaking[key] = {**breaking.get(key, {}), **alphas}
    return replace(vectors, meta={**vectors.meta, "breaking": breaking})


def _solve(model: Model, steering: Steering, prompts: list[str], texts: list[str], held: Held) -> dict[str, float]:
    """{emotion: alpha} by the secant rule on log alpha and log KL, for all emotions in the same passes."""
    points: dict[str, list[tuple[float, float]]] = {emotion: [] for emotion in steering.doses}
    here = dict.fromkeys(points, 0.0)  # log alpha
    alphas: dict[str, float] = {}
    for _ in range(_ROUNDS):
        open_ = [emotion for emotion in points if emotion not in alphas]
        rows: list[Steering | None] = [replace(steering, doses={e: math.exp(here[e])}) for e in open_ for _ in texts]
        for emotion, kl in zip(open_, _kls(model, prompts, texts, rows, held), strict=True):
            gap = math.log(max(kl, 1e-9) / NATS)
            points[emotion].append((here[emotion], gap))
            if abs(gap) <= math.log1p(TOLERANCE):
                alphas[emotion] = round(math.exp(here[emotion]), 4)
            else:
                here[emotion] = _next(points[emotion])
        if len(alphas) == len(points):
            return {emotion: alphas[emotion] for emotion in points}
    lost = next(emotion for emotion in points if emotion not in alphas)
    log_alpha, gap = points[lost][-1]
    advice = "does this setting change the model at all?"
    if steering.op == "clamp" and gap > 0:
        advice = "holding a component at 0 already breaks it: choose another setting"
    raise EmolabError(
        f"no alpha breaks text for {lost} at {steering.breaking_key}: KL is {math.exp(gap) * NATS:.3g} nats at alpha "
        f"{math.exp(log_alpha):.3g}; {advice}"
    )


def _kls(model: Model, prompts: list[str], texts: list[str], rows: list[Steering | None], held: Held) -> list[float]:
    """The KL of each emotion in turn; infinite where a dose is so large that activations overflow."""
    n = len(texts)
    several = len(rows) // n
    try:
        kls = next_token_kl(model, prompts * several, texts * several, steering=rows, held=held)
    except NumberError:
        if several == 1:
            return [math.inf]
        return [kl for k in range(several) for kl in _kls(model, prompts, texts, rows[k * n : (k + 1) * n], held)]
    return [p95_kl(kls[k * n : (k + 1) * n]) for k in range(several)]


def _next(points: list[tuple[float, float]]) -> float:
    """The next log alpha: between the two points around the target where there are such, else along the slope."""
    low = max((p for p in points if p[1] < 0), default=None)
    high = min((p for p in points if p[1] > 0), default=None)
    if low is not None and high is not None and math.isfinite(high[1]):
        share = low[1] / (low[1] - high[1])
        return low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
    if low is not None and high is not None:
        return (low[0] + high[0]) / 2
    at, gap = points[-1]
    slope = 2.0  # KL grows with the square of alpha
    if len(points) >= _LEVELS_OFF and math.isfinite(gap):  # not here, it seems: then as it did in the last step
        (before, gap_before), _ = points[-2:]
        slope = max((gap - gap_before) / (at - before), 0.1) if math.isfinite(gap_before) else slope
    return at - min(max(gap / slope, -math.log(4)), math.log(4))  # at most fourfold
