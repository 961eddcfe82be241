"""The paper's four claims, each from a table to a verdict with its conditions and numbers (arXiv 2502.04075).

The paper argues to first order, so for small doses; claims are asked there (|alpha| <= 1) and over the whole range of
doses. How they are put here is ours. Tables come from `claim_runs` and from scored sweeps. Intervals are 95 %
bootstraps over queries, those of one situation together; every effect stands beside random directions of equal norm. In
evidence, three numbers in a list are a value and its interval.

>>> claim = monotone(scored)
>>> claim.verdict, claim.condition
>>> claim.evidence["emotions"]["joy"]["alpha_star"]           # the first significant drop; None: none at these doses
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.stats import clusters_of
from emolab.comparisons import claim_fits as fits
from emolab.experiments.dose_response import logit, target_p

SUPPORTED, NOT, MIXED = "supported", "not supported", "mixed"
LOCAL = 1.0  # doses within which "local" is asked
RANGES = (1.0, 2.0, 4.0)
MARGIN = 0.1  # of the way to an answer to another query: as little more than random is no loss of topic
BROKEN = 0.5  # half that way is a loss, whatever random directions do
LINE = 0.9  # share of the variance over doses that a line must explain
_BOUNDS, _MINUS = ("value", "lo", "hi"), ("minus", "minus_lo", "minus_hi")
ADDED = 0.2  # interaction in parts of the gain: as little is additive


@dataclass(frozen=True, eq=False)
class Claim:
    """A verdict ("supported", "not supported", "mixed") with its condition, one sentence, and its evidence, JSON-able.

    table: what the claim's figure draws.
    """

    name: str
    verdict: str
    condition: str
    evidence: dict[str, Any]
    table: pd.DataFrame = field(repr=False)


def judge_logits(scored: pd.DataFrame) -> pd.DataFrame:
    """The scored table with `value`, the logit of the first judge's probability of the target, and `scale` "judge"."""
    return scored.assign(value=logit(target_p(scored)), scale="judge")


def monotone(table: pd.DataFrame, *, seed: int = 0) -> Claim:
    """Does the target rise with the dose: at 0, and over the whole range?

    >>> monotone(scored).evidence["judge"]["local"], monotone(scored).evidence["judge"]["global"]

    table: as for `linear`. Local holds for an emotion whose slope within |alpha| <= 1 (least squares, by query) is
    above 0 and above that of the random direction. Global holds where Spearman's rho of dose and value is above 0 and
    no dose lies significantly below a lower one (`claim_fits.first_drop`); alpha_star is the first that does. Fewer
    than five situations cannot show a drop: undecided. On either scale each is "supported" where it holds for all
    emotions and "not supported" where for none; so is the claim where all agree, else "mixed".
    """
    table = _scaled(table)
    clusters, evidence, rows, told, names = clusters_of(table), {}, [], [], ("none", "random")
    average = partial(np.nanmean, axis=0)
    for scale, part in table.groupby("scale", sort=False):
        curves, per, enough = fits.wide_curves(part), {}, clusters_of(part).nunique() >= 5
        rows += [fits.means(w, clusters, seed, scale=scale, emotion=e, control=c) for (e, c), w in curves.items()]
        for emotion in order(part["emotion"]):
            own = {c: curves[emotion, c] for c in names}
            shared = own["none"].index.intersection(own["random"].index)
            rises = pd.DataFrame({c: fits.slopes(wide.loc[shared], LOCAL) for c, wide in own.items()})
            found = fits.intervals(rises.assign(less=rises["none"] - rises["random"]), average, clusters, seed)
            rho = {c: fits.intervals(fits.spearman(wide), average, clusters, seed)[0] for c, wide in own.items()}
            star = {c: fits.first_drop(wide, clusters, seed) for c, wide in own.items()}
            per[emotion] = {
                "local": bool(found[0, 1] > 0 and found[2, 1] > 0),
                "global": bool(rho["none"][1] > 0 and np.isnan(star["none"])) if enough else None,
                **dict(zip(("slope", "random_slope", "slope_minus_random"), found, strict=True)),
                **{"alpha_star": star["none"], "random_alpha_star": star["random"]},
                **{"spearman": rho["none"], "random_spearman": rho["random"]},
                **{"isotonic_r2": fits.isotonic_r2(own["none"]), "random_isotonic_r2": fits.isotonic_r2(own["random"])},
            }
        held = {reach: [x[reach] for x in per.values()] for reach in ("local", "global")}
        evidence[scale] = {reach: _verdict(x) for reach, x in held.items()}
        evidence[scale] |= {f"n_{reach}": sum(map(bool, x)) for reach, x in held.items()} | {"emotions": per}
        stars = [x["alpha_star"] for x in per.values() if np.isfinite(x["alpha_star"])]
        drop = f" (first drop at dose {_span(stars)})" if stars else ""
        near, far = (evidence[scale][f"n_{reach}"] for reach in held)
        told.append(f"{scale} ({_counted(part)}): {near} of {len(per)} at 0, {far} over all{drop}")
    parts = [evidence[scale][reach] for scale in evidence for reach in ("local", "global")]
    doses = table.loc[table["control"] == "none", "alpha"]
    condition = (
        "Emotions whose target rises, more than under random directions at 0 and without a significant drop over all "
        f"doses ({_span(doses)}); {'; '.join(told)}."
    )
    return _claim("monotone", parts, condition, evidence, rows)


def preservation(drift: pd.DataFrame, *, seed: int = 0) -> Claim:
    """Does steering keep the topic, drifting from it no more than a random push of equal norm does?

    >>> preservation(drift).evidence["topic"]["slope"]["none"]       # of log drift over log dose, up to dose 1

    drift: of `claim_runs.drift_runs`. How drift grows (1 linear, 2 quadratic) is reported of the topic, the answer and
    the next-token KL, for the vector and every control, and decides nothing: KL is quadratic under ANY small
    perturbation, so that its slope 2 is no evidence, and greedy texts flip at near-ties under any. The verdict rests on
    the contrast with random directions of equal norm, in the topic alone, since an answer must change if its emotion
    does. A dose keeps the topic where the vector drifts at most 0.1 more than random (upper bound; 1 is an answer to
    another query) and less than 0.5 in all. It loses it where it drifts more than random (lower bound), maybe by 0.1 or
    more, or by more than 0.5 in all. "local" (up to dose 1) and "global" are supported where all doses keep it, not
    supported where one loses it; so is the claim where both agree, else "mixed".
    """
    columns = ("query_id", "control", "alpha", "topic", "answer", "kl")
    need_table(drift, columns, "emolab.comparisons.claim_runs.drift_runs")
    steered, clusters, evidence, rows = drift[drift["alpha"] > 0], clusters_of(drift), {}, []
    controls = ["none", *(c for c in steered["control"].unique() if c != "none")]
    doses = np.array(sorted(steered["alpha"].unique()))
    small = doses <= LOCAL
    if not {"none", "random"} <= set(controls) or not small.any():
        raise EmolabError('the drift needs controls "none" and "random" and a dose up to 1; it comes from drift_runs')
    statistic = partial(fits.drift_and_slope, doses=doses, small=small)
    for measure in ("topic", "answer", "kl"):
        wide = steered.groupby(["query_id", "control", "alpha"])[measure].mean().unstack(["control", "alpha"])
        wide = wide[[(c, a) for c in controls for a in doses]].dropna()
        drifts, minus = fits.intervals(wide, statistic, clusters, seed)
        told = drift[drift["control"] == "prompt"].groupby("query_id")[[measure]].mean()
        names = [f"{a:g}" for a in doses]
        evidence[measure] = {
            "slope": {c: drifts[i, -1] for i, c in enumerate(controls)},
            "slope_minus": {c: minus[i, -1] for i, c in enumerate(controls) if i},
            "drift": {c: dict(zip(names, drifts[i], strict=False)) for i, c in enumerate(controls)},
            "minus": {c: dict(zip(names, minus[i], strict=False)) for i, c in enumerate(controls) if i},
            "prompt": told[measure].mean(),
        }
        cells = product(enumerate(controls), enumerate(doses))
        found = [(measure, c, a, *drifts[i, j], *minus[i, j], len(wide)) for (i, c), (j, a) in cells]
        rows.append(pd.DataFrame(found, columns=["measure", "control", "alpha", *_BOUNDS, *_MINUS, "n"]))
        if len(told):
            rows.append(fits.means(told.set_axis([0.0], axis=1), clusters, seed, measure=measure, control="prompt"))
    topic, verdicts = evidence["topic"], {}
    states = [_topic_at(topic["drift"]["none"][a], topic["minus"]["random"][a]) for a in names]
    for reach, n in (("local", small.sum()), ("global", len(doses))):
        verdicts[reach] = NOT if False in states[:n] else _verdict(states[:n])
    near, far = names[small.sum() - 1], names[-1]
    told = f", instructed answers drift by {topic['prompt']:.2f}" if np.isfinite(topic["prompt"]) else ""
    said = "; ".join(
        f"at dose {a} {_triple(topic['drift']['none'][a])}, minus random {_triple(topic['minus']['random'][a])}"
        for a in (near, far)
    )
    grows = [evidence["kl"]["slope"][c][0] for c in ("none", "random")]
    condition = (
        f"Drift from the topic, {_counted(drift)}, 1 being an answer to another query: {said}{told}. Next-token KL "
        f"grows with exponent {grows[0]:.1f} (random {grows[1]:.1f}) up to dose {near}: no evidence of meaning kept."
    )
    return _claim("preservation", verdicts.values(), condition, {**verdicts, **evidence}, rows)


def linear(table: pd.DataFrame, *, seed: int = 0) -> Claim:
    """Is the effect on the logit scale a line in the dose, within |alpha| <= 1, 2 and 4?

    >>> linear(scored).evidence["verdicts"]

    table: a scored sweep, or `query_id, situation, scale, emotion, control, alpha, value` on logit scales. To the mean
    over queries are fitted a line, a parabola and a logistic curve. `r2` is the share of the variance over doses that
    the line explains, `asymmetry` the sum of the effects at either end over their difference (0: as much down as up),
    `r2_query` the median R2 of a line through one query. `aic` (less the line's; negative is better) and `p_curved` (F
    test of the parabola against the line) take the texts of a query as independent given its level: read the interval
    of `curvature` first. A range is linear for an emotion where its slope is above 0 and r2 at least 0.9 (lower
    bounds), not where r2 is below 0.9 or the slope not above 0 (upper bounds). A range needs four doses.
    """
    table = _scaled(table)
    clusters, evidence, states, rows = clusters_of(table), {}, {}, []
    for scale, part in table.groupby("scale", sort=False):
        curves = fits.wide_curves(part)
        for (emotion, control), wide in curves.items():
            rows.append(fits.means(wide, clusters, seed, scale=scale, emotion=emotion, control=control))
            for reach in RANGES if control == "none" else ():
                doses = [a for a in wide.columns.astype(float) if abs(a) <= reach]
                if len(doses) < 4 or max(map(abs, doses)) <= reach / 2:
                    continue
                own = dict(zip(fits.LINE_FITS, fits.fit_line(wide[doses], clusters, seed), strict=True))
                slope, r2 = own["slope"], own["r2"]
                straight = slope[1] > 0 and r2[1] >= LINE
                state = True if straight else False if slope[2] <= 0 or r2[2] < LINE else None
                states.setdefault((scale, f"{reach:g}"), []).append(state)
                random = fits.fit_line(curves[emotion, "random"][doses], clusters, seed)
                own |= {"random_slope": random[0], "random_r2": random[2], **fits.rivals(wide[doses])}
                evidence.setdefault(scale, {}).setdefault(emotion, {})[f"{reach:g}"] = own
                fitted = np.polyval(np.polyfit(doses, wide[doses].mean(), 1), doses)
                rows[-1][f"line_{reach:g}"] = rows[-1]["alpha"].map(dict(zip(doses, fitted, strict=True)))
    if not states:
        raise EmolabError("a line needs at least four doses within |alpha| <= 4, 0 among them; sweep more doses")
    verdicts, told = {}, {}
    for (scale, reach), found in states.items():
        verdicts.setdefault(scale, {})[reach] = _verdict(found)
        told.setdefault(scale, []).append(f"{sum(s is True for s in found)} of {len(found)} up to {reach}")
    said = "; ".join(f"{scale}: {', '.join(parts)}" for scale, parts in told.items())
    condition = f"A line explains at least 90 % of what the dose does, {_counted(table)}, emotions by |alpha|: {said}."
    parts = [verdict for by in verdicts.values() for verdict in by.values()]
    return _claim("linear", parts, condition, {"verdicts": verdicts, **evidence}, rows)


def additive(pairs: pd.DataFrame, *, seed: int = 0) -> Claim:
    """Do two emotions at once do what either does alone, summed?

    >>> additive(grid.assign(scale="log-odds")).evidence["log-odds"]["whole"]["share"]

    pairs: of `claim_runs.pair_runs`, with `scale` and `value` on a logit scale. The interaction at doses a and b is the
    joint effect less both single ones, on the logit of either emotion; `coefficient` is its least-squares slope over a
    times b, mean over pairs and targets; `share`, that at the largest doses, in parts of the target's own gain there
    (-1: the other emotion takes all of it away). Asked with the shared base (part "whole") and without ("specific"),
    beside a random pair. Additive where share lies within 0.2 of 0 (both bounds), not where the coefficient's interval
    leaves out 0; else, and where an emotion alone gains nothing to be added, undecided. A judge's probabilities sum to
    one, so that on its logits two emotions also compete; on log-odds they do not.
    """
    table = fits.pair_table(pairs)
    clusters, evidence, rows, states, told, levels = clusters_of(table), {}, [], [], [], []
    for scale, part in table.groupby("scale", sort=False):
        found, kinds, sums, levels = fits.interactions(part, clusters, seed)  # [number, kind, sum, 3]
        for i, kind in enumerate(kinds):
            rows.append(pd.DataFrame(sums, columns=["pair", "target"]).assign(scale=scale, kind=kind, n=len(clusters)))
            for name, x in zip(fits.ADDITIVE_FITS, found[:, i], strict=True):
                rows[-1][[name, f"{name}_lo", f"{name}_hi"]] = x
            own: dict[str, Any] = dict(zip(fits.ADDITIVE_FITS, found[:, i, -1], strict=True))
            own["minus_random"] = found[0, len(kinds) + i, -1]
            evidence.setdefault(scale, {})[kind] = own
            if kind != "random":
                states.append(_additive(own["coefficient"], own["share"]))
                own["verdict"] = _verdict(states[-1:])
                told.append(f"{scale}, {kind}: {_triple(own['share']) if own['gain'][1] > 0 else 'no gain to add to'}")
    top = f"{levels[-1]:g} and {levels[-1]:g}"
    condition = f"Interaction at doses {top} in parts of the emotion's own gain, {_counted(table)}: {'; '.join(told)}."
    return _claim("additive", states, condition, evidence, rows)


def _scaled(table: pd.DataFrame) -> pd.DataFrame:
    need_table(table, ("query_id", "emotion", "control", "alpha"), "emolab.score(emolab.sweep(...))")
    return table if "value" in table else judge_logits(table)


def _topic_at(drift: Sequence[float], minus: Sequence[float]) -> bool | None:
    """Whether a dose keeps the topic (True) or loses it (False)."""
    lost = (minus[1] > 0 and minus[2] >= MARGIN) or drift[1] > BROKEN
    return False if lost else True if minus[2] < MARGIN and drift[2] < BROKEN else None


def _additive(coefficient: np.ndarray, share: np.ndarray) -> bool | None:
    if np.isnan(share[0]):
        return None
    return (
        True if share[1] > -ADDED and share[2] < ADDED else False if coefficient[1] > 0 or coefficient[2] < 0 else None
    )


def _verdict(parts: Iterable[bool | str | None]) -> str:
    found = {SUPPORTED if p in (True, SUPPORTED) else NOT if p in (False, NOT) else MIXED for p in parts}
    return found.pop() if len(found) == 1 else MIXED


def _claim(name: str, parts: Iterable, condition: str, evidence: dict, rows: list[pd.DataFrame]) -> Claim:
    table = pd.concat(rows, ignore_index=True)
    return Claim(name, _verdict(parts), condition, _clean(evidence), table)


def _clean(x: Any) -> Any:
    """Plain, rounded and without NaN, as JSON takes it."""
    if isinstance(x, Mapping):
        return {str(key): _clean(value) for key, value in x.items()}
    if isinstance(x, str | bool | int | None):
        return x
    if isinstance(x, Real):
        return float(f"{x:.4g}") if math.isfinite(x) else None
    return [_clean(value) for value in x]


def _counted(table: pd.DataFrame) -> str:
    clusters = clusters_of(table)
    return f"{len(clusters)} queries in {clusters.nunique()} situations"


def _span(doses: Iterable[float]) -> str:
    low, high = min(doses), max(doses)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _triple(x: Iterable[float]) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*x)
