"""The paper's four claims, each from a table to a verdict with its conditions and numbers (arXiv 2502.04075).

The paper argues to first order, so for small doses; claims are asked there (|alpha| <= 1) and over the whole range of
doses. How they are put here is ours. Tables come from `claim_runs` and from scored sweeps. Intervals are 95 %
bootstraps over queries, those of one situation together; every effect stands beside random directions of equal norm. In
evidence, three numbers in a list are a value and its interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import order
from emolab.base.stats import clusters_of
from emolab.base.storage import for_json
from emolab.base.tables import about
from emolab.comparisons import claim_fits as fits
from emolab.experiments.dose_response import LOCAL, dose_curves, logit, target_p, trend

SUPPORTED, NOT, MIXED = "supported", "not supported", "mixed"
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

    >>> claim = monotone(scored)
    >>> claim.verdict, claim.condition
    >>> claim.evidence["judge"]["emotions"]["joy"]["first_drop"]           # None: no significant drop at these doses

    table: as for `linear`. Its curves are described by `emolab.experiments.trend`. Local holds for an emotion whose
    slope within |alpha| <= 1 is above 0 and above that of the random direction. Global holds where Spearman's rho of
    dose and value is above 0 and no dose lies significantly below a lower one; `first_drop` is the first that does.
    Fewer than five situations cannot show a drop: undecided. On either scale each is "supported" where it holds for all
    emotions and "not supported" where for none; so is the claim where all agree, else "mixed".
    """
    table = _scaled(table)
    clusters = clusters_of(table)
    evidence, rows, sentences = {}, [], []
    for scale, part in table.groupby("scale", sort=False):
        for (emotion, control), curve in _curves(part).items():
            rows.append(fits.means(curve, clusters, seed, scale=scale, emotion=emotion, control=control))
        trends = {(row["emotion"], row["control"]): row for row in trend(part, seed=seed).to_dict("records")}
        can_drop = clusters_of(part).nunique() >= 5
        emotions = {e: _rise(trends[e, "none"], trends[e, "random"], can_drop) for e in order(part["emotion"])}
        near, far = ([rise[reach] for rise in emotions.values()] for reach in ("local", "global"))
        evidence[scale] = {"local": _verdict(near), "global": _verdict(far)}
        evidence[scale] |= {"n_local": sum(map(bool, near)), "n_global": sum(map(bool, far)), "emotions": emotions}
        drops = [rise["first_drop"] for rise in emotions.values() if np.isfinite(rise["first_drop"])]
        sentences.append(
            f"{scale} ({_counted(part)}): {sum(map(bool, near))} of {len(near)} at 0, {sum(map(bool, far))} over all"
            + (f" (first drop at dose {_span(drops)})" if drops else "")
        )
    doses = table.loc[table["control"] == "none", "alpha"]
    condition = (
        "Emotions whose target rises, more than under random directions at 0 and without a significant drop over all "
        f"doses ({_span(doses)}); {'; '.join(sentences)}."
    )
    verdicts = [found[reach] for found in evidence.values() for reach in ("local", "global")]
    return _claim("monotone", verdicts, condition, evidence, rows, table)


def _curves(part: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """`dose_curves`; EmolabError without the random control, and where no query is left of a curve."""
    curves = dose_curves(part)
    for emotion in order(part["emotion"]):
        if (emotion, "random") not in curves:
            raise EmolabError(f'{emotion} needs control "random"; sweep with controls=("random",)')
    for (emotion, control), curve in curves.items():
        if curve.empty:
            raise EmolabError(
                f"no query has a value of {emotion} at every dose of control {control!r}: the judge could not read a "
                "text of each; take other doses, or a judge that can read them"
            )
    return curves


def _rise(vector: Mapping, random: Mapping, can_drop: bool) -> dict[str, Any]:
    """What `monotone` says of one emotion, from the trends of its vector and of the random direction."""
    if np.isnan(vector["slope"]):
        raise EmolabError(f"a slope at 0 needs a dose within {LOCAL:g} of it; sweep more doses")
    evidence: dict[str, Any] = {
        "local": bool(vector["slope_lo"] > 0 and vector["minus_random_lo"] > 0),
        "global": bool(vector["spearman_lo"] > 0 and np.isnan(vector["first_drop"])) if can_drop else None,
        "slope_minus_random": [vector[f"minus_random{bound}"] for bound in ("", "_lo", "_hi")],
    }
    for prefix, row in (("", vector), ("random_", random)):
        evidence[f"{prefix}slope"] = [row["slope"], row["slope_lo"], row["slope_hi"]]
        evidence[f"{prefix}spearman"] = [row["spearman"], row["spearman_lo"], row["spearman_hi"]]
        evidence[f"{prefix}first_drop"] = row["first_drop"]
    return evidence


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
    steered, clusters = drift[drift["alpha"] > 0], clusters_of(drift)
    controls = ["none", *(c for c in steered["control"].unique() if c != "none")]
    doses = np.array(sorted(steered["alpha"].unique()))
    names = [f"{dose:g}" for dose in doses]
    small = doses <= LOCAL
    if not {"none", "random"} <= set(controls) or not small.any():
        raise EmolabError('the drift needs controls "none" and "random" and a dose up to 1; it comes from drift_runs')
    statistic = partial(fits.drift_and_slope, doses=doses, small=small)
    evidence, rows = {}, []
    for measure in ("topic", "answer", "kl"):
        wide = steered.groupby(["query_id", "control", "alpha"])[measure].mean().unstack(["control", "alpha"])
        wide = wide[[(c, a) for c in controls for a in doses]].dropna()
        drifts, minus = fits.intervals(wide, statistic, clusters, seed)  # [control, dose and slope, 3]
        prompted = drift[drift["control"] == "prompt"].groupby("query_id")[[measure]].mean()
        evidence[measure] = {
            "slope": {c: drifts[i, -1] for i, c in enumerate(controls)},
            "slope_minus": {c: minus[i, -1] for i, c in enumerate(controls) if i},
            "drift": {c: dict(zip(names, drifts[i], strict=False)) for i, c in enumerate(controls)},
            "minus": {c: dict(zip(names, minus[i], strict=False)) for i, c in enumerate(controls) if i},
            "prompt": prompted[measure].mean(),
        }
        cells = product(enumerate(controls), enumerate(doses))
        values = [(measure, c, a, *drifts[i, j], *minus[i, j], len(wide)) for (i, c), (j, a) in cells]
        rows.append(pd.DataFrame(values, columns=["measure", "control", "alpha", *_BOUNDS, *_MINUS, "n"]))
        if len(prompted):
            rows.append(fits.means(prompted.set_axis([0.0], axis=1), clusters, seed, measure=measure, control="prompt"))
    topic = evidence["topic"]
    states = [_topic_at(topic["drift"]["none"][name], topic["minus"]["random"][name]) for name in names]
    verdicts = {
        reach: NOT if False in states[:n] else _verdict(states[:n])
        for reach, n in (("local", small.sum()), ("global", len(doses)))
    }
    near, far = names[small.sum() - 1], names[-1]
    drifted = "; ".join(
        f"at dose {a} {_triple(topic['drift']['none'][a])}, minus random {_triple(topic['minus']['random'][a])}"
        for a in (near, far)
    )
    told = f", instructed answers drift by {topic['prompt']:.2f}" if np.isfinite(topic["prompt"]) else ""
    vector, random = (evidence["kl"]["slope"][control][0] for control in ("none", "random"))
    condition = (
        f"Drift from the topic, {_counted(drift)}, 1 being an answer to another query: {drifted}{told}. Next-token KL "
        f"grows with exponent {vector:.1f} (random {random:.1f}) up to dose {near}: no evidence of meaning kept."
    )
    return _claim("preservation", verdicts.values(), condition, {**verdicts, **evidence}, rows, drift)


def linear(table: pd.DataFrame, *, seed: int = 0) -> Claim:
    """Is the effect on the logit scale a line in the dose, within |alpha| <= 1, 2 and 4?

    >>> linear(scored).evidence["verdicts"]

    table: a scored sweep, or `query_id, situation, scale, emotion, control, alpha, value` on logit scales. To the mean
    over queries are fitted a line and a parabola. `r2` is the share of the variance over doses that the line explains,
    `r2_parabola` and `curvature` are of the parabola, `asymmetry` is the sum of the effects at either end over their
    difference (0: as much down as up). A range is linear for an emotion where its slope is above 0 and r2 at least 0.9
    (lower bounds), not where r2 is below 0.9 or the slope not above 0 (upper bounds). A range needs four doses.
    """
    table = _scaled(table)
    clusters = clusters_of(table)
    evidence, states, rows = {}, {}, []
    for scale, part in table.groupby("scale", sort=False):
        curves = _curves(part)
        for (emotion, control), curve in curves.items():
            means = fits.means(curve, clusters, seed, scale=scale, emotion=emotion, control=control)
            rows.append(means)
            for reach in RANGES if control == "none" else ():
                doses = [a for a in curve.columns.astype(float) if abs(a) <= reach]
                if len(doses) < 4 or max(map(abs, doses)) <= reach / 2:
                    continue
                fit = dict(zip(fits.LINE_FITS, fits.fit_line(curve[doses], clusters, seed), strict=True))
                states.setdefault((scale, f"{reach:g}"), []).append(_straight(fit["slope"], fit["r2"]))
                random = fits.fit_line(curves[emotion, "random"][doses], clusters, seed)
                fit |= {"random_slope": random[0], "random_r2": random[2]}
                evidence.setdefault(scale, {}).setdefault(emotion, {})[f"{reach:g}"] = fit
                fitted = np.polyval(np.polyfit(doses, curve[doses].mean(), 1), doses)
                means[f"line_{reach:g}"] = means["alpha"].map(dict(zip(doses, fitted, strict=True)))
    if not states:
        raise EmolabError("a line needs at least four doses within |alpha| <= 4, 0 among them; sweep more doses")
    verdicts, counts = {}, {}
    for (scale, reach), found in states.items():
        verdicts.setdefault(scale, {})[reach] = _verdict(found)
        counts.setdefault(scale, []).append(f"{sum(s is True for s in found)} of {len(found)} up to {reach}")
    said = "; ".join(f"{scale}: {', '.join(parts)}" for scale, parts in counts.items())
    condition = f"A line explains at least 90 % of what the dose does, {_counted(table)}, emotions by |alpha|: {said}."
    parts = [verdict for by_reach in verdicts.values() for verdict in by_reach.values()]
    return _claim("linear", parts, condition, {"verdicts": verdicts, **evidence}, rows, table)


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
    clusters = clusters_of(table)
    top = f"{table['own'].max():g}"
    evidence, rows, states, sentences = {}, [], [], []
    for scale, part in table.groupby("scale", sort=False):
        numbers, kinds, sums = fits.interactions(part, clusters, seed)  # [number, kind, sum, 3]
        for i, kind in enumerate(kinds):
            means = pd.DataFrame(sums, columns=["pair", "target"]).assign(scale=scale, kind=kind, n=len(clusters))
            for name, x in zip(fits.ADDITIVE_FITS, numbers[:, i], strict=True):
                means[[name, f"{name}_lo", f"{name}_hi"]] = x
            rows.append(means)
            mean: dict[str, Any] = dict(zip(fits.ADDITIVE_FITS, numbers[:, i, -1], strict=True))
            mean["minus_random"] = numbers[0, len(kinds) + i, -1]
            evidence.setdefault(scale, {})[kind] = mean
            if kind != "random":
                states.append(_additive(mean["coefficient"], mean["share"]))
                mean["verdict"] = _verdict(states[-1:])
                gains = mean["gain"][1] > 0
                sentences.append(f"{scale}, {kind}: {_triple(mean['share']) if gains else 'no gain to add to'}")
    condition = (
        f"Interaction at doses {top} and {top} in parts of the emotion's own gain, {_counted(table)}: "
        f"{'; '.join(sentences)}."
    )
    return _claim("additive", states, condition, evidence, rows, pairs)


def _scaled(table: pd.DataFrame) -> pd.DataFrame:
    need_table(table, ("query_id", "emotion", "control", "alpha"), "emolab.score(emolab.sweep(...))")
    return table if "value" in table else judge_logits(table)


def _topic_at(drift: Sequence[float], minus: Sequence[float]) -> bool | None:
    """Whether a dose keeps the topic (True) or loses it (False)."""
    lost = (minus[1] > 0 and minus[2] >= MARGIN) or drift[1] > BROKEN
    return False if lost else True if minus[2] < MARGIN and drift[2] < BROKEN else None


def _straight(slope: np.ndarray, r2: np.ndarray) -> bool | None:
    """Whether a range is linear (True) or not (False)."""
    if slope[1] > 0 and r2[1] >= LINE:
        return True
    return False if slope[2] <= 0 or r2[2] < LINE else None


def _additive(coefficient: np.ndarray, share: np.ndarray) -> bool | None:
    """Whether two emotions add up (True) or not (False)."""
    if np.isnan(share[0]):
        return None
    if share[1] > -ADDED and share[2] < ADDED:
        return True
    return False if coefficient[1] > 0 or coefficient[2] < 0 else None


def _verdict(parts: Iterable[bool | str | None]) -> str:
    words = {True: SUPPORTED, False: NOT, None: MIXED}
    verdicts = {part if isinstance(part, str) else words[part] for part in parts}
    return verdicts.pop() if len(verdicts) == 1 else MIXED


def _claim(
    name: str, parts: Iterable, condition: str, evidence: dict, rows: list[pd.DataFrame], source: pd.DataFrame
) -> Claim:
    table = pd.concat(rows, ignore_index=True)
    table.attrs["about"] = about(source)
    return Claim(name, _verdict(parts), condition, for_json(evidence, digits=4), table)


def _counted(table: pd.DataFrame) -> str:
    clusters = clusters_of(table)
    return f"{len(clusters)} queries in {clusters.nunique()} situations"


def _span(doses: Iterable[float]) -> str:
    low, high = min(doses), max(doses)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _triple(x: Iterable[float]) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*x)
