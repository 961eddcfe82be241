"""What sweeps say: which dose brings the emotion, what it costs, how settings, parts, sources and mixtures compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emolab.base.labels import CONTROL_NAMES, NEUTRAL, order
from emolab.base.stats import LEVEL
from emolab.experiments.dose_response import collapse, compare
from emolab.experiments.headline import instructed_answers, is_hit, is_unsteered
from emolab.experiments.shares import instruction_shares, layer_shares, mixture_shares, setting_differences
from emolab.say.sentences import (
    Sentences,
    bounded,
    largest_row,
    listed,
    mean_share,
    measured,
    number,
    smallest_row,
    too_few,
    upper,
    where_largest,
    where_smallest,
)

_NAMES = {"none": "the vector", **CONTROL_NAMES, "prompt": "instructed"}


@measured
def dose_response(scored: pd.DataFrame, *, reference: pd.DataFrame | None = None) -> Sentences:
    """The dose that brings most texts to the target, beside its controls; which emotion comes first; what it costs.

    >>> emolab.say.dose_response(scored, reference=instructed).verdict

    scored: a scored sweep of one setting; reference: scored answers under instruction. An emotion comes at the first
    dose where the interval of the difference to its random direction lies above zero.
    """
    table = scored.assign(hit=is_hit(scored))
    plain = table[is_unsteered(table)]
    strongest, dose = _at_best_dose(table)
    at_dose = table[table["alpha"] == dose]
    beside = {name: at_dose[at_dose["control"] == control] for control, name in CONTROL_NAMES.items()}
    beside["unsteered"] = plain
    if reference is not None:
        beside["instructed"] = _instructed(reference)
    shares = ", ".join(f"{name} {mean_share(rows, 'hit')}" for name, rows in beside.items() if len(rows))
    return Sentences(
        f"Steering brings {mean_share(strongest, 'hit')} of the texts to the target at dose {dose:g} ({shares}).",
        _first(compare(scored, measure="target")) if "random" in set(table["control"]) else "",
        _kept(strongest, at_dose, plain),
        _broken(scored, reference),
    )


def _at_best_dose(table: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """Texts of the vector at the positive dose that brings most of them to the target (`hit`), and that dose."""
    steered = table[~is_unsteered(table) & (table["control"] == "none") & (table["alpha"] > 0)]
    dose = where_largest(steered.groupby("alpha")["hit"].mean())
    return steered[steered["alpha"] == dose], dose


def _instructed(reference: pd.DataFrame) -> pd.DataFrame:
    """Answers to instructions, `hit` where the judge reads what was asked for."""
    answers = instructed_answers(reference)
    return answers.assign(hit=is_hit(answers))


def _kept(strongest: pd.DataFrame, at_dose: pd.DataFrame, plain: pd.DataFrame) -> str:
    """How much of the topic is left, beside a random direction."""
    if not _has_adherence(plain):
        return ""
    whole, random = plain["adherence"].mean(), at_dose[at_dose["control"] == "random"]["adherence"]
    beside = f" (random direction {random.mean() / whole:.0%})" if random.notna().any() else ""
    return f"There {strongest['adherence'].mean() / whole:.0%} of the adherence to the question is left{beside}."


def _first(effects: pd.DataFrame) -> str:
    """Which emotion passes its random direction first."""
    above = effects[(effects["lo"] > 0) & (effects["alpha"] > 0)].groupby("emotion")["alpha"].min()
    never = [e for e in order(effects["emotion"]) if e not in above]
    said = ""
    if len(above) and above.min() == above.max():
        verb = "passes its" if len(above) == 1 else "pass their"
        said = f"{upper(listed(order(above.index)))} {verb} random direction at dose {above.min():g}."
    elif len(above):
        first, last = (order(above.index[above == dose]) for dose in (above.min(), above.max()))
        said = f"{upper(listed(first))} pass{'es' * (len(first) == 1)} the random direction first, at dose "
        said += f"{above.min():g}, {listed(last)} last, at dose {above.max():g}."
    if never:
        said += f" For {listed(never)} no difference from the random direction was found at any dose."
    return said.strip()


def _broken(scored: pd.DataFrame, reference: pd.DataFrame | None) -> str:
    """From which dose on fluency falls."""
    if "perplexity" not in scored and "repetition" not in scored:
        return ""
    own = scored[scored["control"] == "none"]
    most = own["alpha"].max()
    star = collapse(scored, reference).set_index("emotion")["alpha_star"]
    broken = [f"{e} {star[e]:g}" for e in order(star.index) if star[e] == star[e]]
    said = f"Up to dose {most:g} no loss of fluency was found"
    if broken:
        said = f"Fluency falls for {listed(broken)} (the dose from which on, α*)"
    if "loop" in scored:
        said += f"; at dose {most:g} {own[own['alpha'] == most]['loop'].mean():.0%} of the texts loop"
    return f"{said}."


@measured
def naming(scored: pd.DataFrame, *, reference: pd.DataFrame | None = None) -> Sentences:
    """Does a steered text show the emotion, or name it? At the dose that brings most texts to the target.

    >>> emolab.say.naming(scored, reference=instructed)

    Needs `named` of `emolab.score`, and `blind_top` where a `BlindJudge` has read the texts, too.
    """
    strong, dose = _at_best_dose(scored.assign(hit=is_hit(scored), named=scored["named"].astype(float)))
    named = f"At dose {dose:g}, {mean_share(strong, 'named')} of the texts hold the name of the emotion or a form of it"
    if reference is not None:
        answers = _instructed(reference).astype({"named": float})
        named += f", of the instructed answers {mean_share(answers, 'named')}"
    blind, rest = "", ""
    if "blind_top" in strong:
        seen = mean_share(strong.assign(hit=strong["blind_top"] == strong["emotion"]), "hit")
        blind = f"A judge that does not see these words reads the target in {seen}."
    without = strong[strong["named"] == 0]
    if len(without):
        rest = f"Of the {len(without)} texts without the name {mean_share(without, 'hit')} are read as the target."
    return Sentences(f"{named}.", blind, rest)


@measured
def effect_forest(effects: pd.DataFrame) -> Sentences:
    """At which doses the vector does more than its control, from `emolab.experiments.compare`.

    >>> emolab.say.effect_forest(emolab.experiments.compare(scored))
    """
    control = _NAMES.get(effects["control"].iloc[0], effects["control"].iloc[0])
    n = effects["emotion"].nunique()
    above = (effects["q"] < LEVEL) & (effects["difference"] > 0)
    count = above.groupby(effects["alpha"]).sum()
    by_dose = listed(f"{c} at dose {alpha:g}" for alpha, c in count.items())
    if not count.any():
        none = f"No difference from the {control} was found, for any of {n} emotions (q < .05)."
        return Sentences(none, too_few(effects))
    most = largest_row(effects, effects["difference"])
    return Sentences(
        f"The vector does more than the {control} (q < .05) for {by_dose}, of {n} emotions.",
        f"The largest difference is that of {most['emotion']} at dose {most['alpha']:g}, "
        f"{bounded(most, 'difference', signed=True)}.",
    )


@measured
def site_map(scored: pd.DataFrame, *, control: str = "random") -> Sentences:
    """Which setting brings most texts to the target beyond its control, and whether the others differ from it.

    >>> emolab.say.site_map(scored)
    """
    table = setting_differences(scored, control=control)
    mean = table[table["emotion"] == "mean"].set_index("setting")
    best, least = largest_row(mean, mean["value"]), smallest_row(mean, mean["value"])
    return Sentences(
        f"Beyond the {_NAMES.get(control, control)} the target is read most with {best.name}: "
        f"{bounded(best, signed=True)}; least, {least.name}: {bounded(least, signed=True)}.",
        "" if best["lo"] > least["hi"] else "Their intervals overlap: no difference between them was found.",
    )


@measured
def layer_curve(scored: pd.DataFrame) -> Sentences:
    """At which single layers the vector does something, beside random directions.

    >>> emolab.say.layer_curve(scored)
    """
    table = layer_shares(scored)
    own = table[table["layer"].notna()]
    mean = own.groupby(["control", "layer"])["value"].mean()
    best = where_largest(mean["none"])
    cells = own[(own["layer"] == best) & (own["control"] == "none")]
    shares = listed(f"{row['emotion']} {bounded(row)}" for _, row in cells.iterrows())
    random = f" (random direction {number(mean['random', best])})" if ("random", best) in mean else ""
    low = [f"{layer:.0f}" for layer, value in mean["none"].items() if value <= mean["none"].max() / 4]
    return Sentences(
        f"One layer alone does most at layer {best:.0f}: {shares}{random}.",
        f"It does least at layers {', '.join(low)}." if low else "",
    )


@measured
def mixture_map(scored: pd.DataFrame) -> Sentences:
    """How a mixture of emotions is read.

    >>> emolab.say.mixture_map(scored)
    """
    table = mixture_shares(scored)
    said = []
    for mixture, rows in table[table["kind"] == "none"].groupby("mixture", sort=False):
        seen = rows[rows["share"] > 0].sort_values("share", ascending=False)
        read = listed(f"{label} in {share:.0%}" for label, share in zip(seen["judged"], seen["share"], strict=True))
        mixed = rows.iloc[0]
        both = f"; mixed within one text: {bounded(mixed, 'mixed')}" if pd.notna(mixed["mixed"]) else ""
        said.append(f"{mixture} is read as {read} of {rows['n'].iloc[0]} texts{both}.")
    return Sentences(*said)


@measured
def purity_dots(rates: pd.DataFrame) -> Sentences:
    """What each part of the vector does at equal norm, from `emolab.experiments.purity`.

    >>> emolab.say.purity_dots(rates)
    """
    cells = rates[rates["emotion"] == "all"].set_index(["part", "measure"])
    parts = [p for p in ("whole", "specific", "shared", "random") if (p, "target") in cells.index]
    names = {"whole": "the whole vector", "random": "random directions"}
    names = {part: names.get(part, f"the {part} part") for part in parts}
    targets = listed(f"{name} {bounded(cells.loc[(part, 'target')])}" for part, name in names.items())
    leaks = listed(f"{name} {number(cells.loc[(part, 'leak'), 'value'])}" for part, name in names.items())
    said = [f"The target is read with {targets} of the texts.", f"Another emotion is read with {leaks}."]
    if ("specific", "leak") in cells.index:
        leak: Any = cells.loc[("specific", "leak")]
        less, low, high = leak[["minus_whole", "minus_whole_lo", "minus_whole_hi"]]
        verdict = "no difference was found" if low <= 0 <= high else f"it leaks {'less' if less < 0 else 'more'}"
        difference = number(less, low, high, signed=True)
        said.append(f"The specific part leaks {difference} against the whole vector: {verdict}.")
    return Sentences(*said)


@measured
def instruction_following(scored: pd.DataFrame) -> Sentences:
    """Which emotions the model writes when it is told to.

    >>> emolab.say.instruction_following(emolab.score(responses))
    """
    table = instruction_shares(scored)
    own = table[(table["condition"] == table["judged"]) & (table["condition"] != NEUTRAL)].set_index("condition")
    best, least = where_largest(own["share"]), where_smallest(own["share"])
    shares = listed(f"{emotion} {bounded(own.loc[emotion], 'share')}" for emotion in order(own.index))
    return Sentences(
        f"Told to, the model writes {best} best and {least} worst: {shares} of the answers are read as asked."
    )


@measured
def judge_agreement(table: pd.DataFrame) -> Sentences:
    """Which judges agree, from `emolab.judges.agreement`.

    >>> emolab.say.judge_agreement(emolab.judges.agreement(scored))
    """
    pairs = listed(
        f"{row['judge_a']} and {row['judge_b']} {bounded(row, 'kappa')}"
        for _, row in table.sort_values("kappa", ascending=False).iterrows()
    )
    return Sentences(f"Beyond chance the judges agree with kappa {pairs} (1 is the same, 0 is chance).")


@measured
def sources(table: pd.DataFrame) -> Sentences:
    """What sources of vectors keep and name at equal effect, from `emolab.experiments.equal_effect`.

    >>> emolab.say.sources(emolab.experiments.equal_effect(scored, instructed)).verdict
    """
    rows = table.drop("instruction")
    instruction: Any = table.loc["instruction"]
    closest = where_largest(rows["adherence_kept"])
    each = [
        f"{upper(str(name))} at dose {row['alpha']:g}: {number(row['target'])} on target (blind judge "
        f"{number(row['blind'])}), {_price(row)}."
        for name, row in rows.iterrows()
    ]
    return Sentences(
        f"Near the effect of the instruction ({number(instruction['target'])} on target, {_price(instruction)}), "
        f"{closest} keep most of the topic: {rows.loc[closest, 'adherence_kept']:.0%} of the adherence.",
        *each,
    )


@measured
def beyond_instruction(scored: Mapping[str, pd.DataFrame], instructed: pd.DataFrame) -> Sentences:
    """What vectors reach for the emotion that the model writes worst when it is told to.

    >>> emolab.say.beyond_instruction({"own answers": scored, "frames": of_frames}, instructed)
    """
    answers = _instructed(instructed)
    worst = where_smallest(answers.groupby("condition")["hit"].mean())
    strongest = {s: _at_best_dose(t[t["emotion"] == worst].assign(hit=is_hit)) for s, t in scored.items()}
    best = max(strongest, key=lambda source: strongest[source][0]["hit"].mean())
    reached, dose = strongest[best]
    written = mean_share(answers[answers["condition"] == worst], "hit")
    return Sentences(
        f"Told to, the model writes {worst} in {written} of its answers; "
        f"vectors of {best} reach {mean_share(reached, 'hit')} at dose {dose:g}."
    )


def _price(row: pd.Series) -> str:
    return f"{row['adherence_kept']:.0%} of the adherence, the emotion named in {row['named']:.0%}"


@measured
def tradeoff(table: pd.DataFrame) -> Sentences:
    """How methods compare, each at its best dose and at equal damage, from `emolab.compare_methods`.

    >>> emolab.say.tradeoff(emolab.compare_methods(...))                 # doctest: +SKIP
    """
    rows = table[(table["emotion"] == "all") & (table["measure"] == "overall")]
    said = []
    for at, place in (("best", "At its best dose"), ("equal damage", "At equal damage")):
        own = rows[(rows["at"] == at) & rows["value"].notna()].sort_values("value", ascending=False)
        scores = listed(f"{row['method']} {bounded(row)}" for _, row in own.iterrows())
        said.append(f"{place} the overall score is: {scores}." if len(own) else "")
    return Sentences(*said)


@measured
def shares(scored: pd.DataFrame, *, by: str = "control") -> Sentences:
    """The share of texts read as the target, by a column of the table, and what is left of the adherence.

    >>> emolab.say.shares(scored[scored["alpha"] == 2])
    """
    table = scored.assign(hit=is_hit(scored))
    named = table[by].replace(_NAMES) if by == "control" else table[by]
    groups = list(table.groupby(named, sort=False))
    read = listed(f"{mean_share(rows, 'hit')} ({name})" for name, rows in groups)
    left = listed(f"{number(rows['adherence'].mean())} ({name})" for name, rows in groups if _has_adherence(table))
    return Sentences(
        f"The target is read in {read} of the texts.",
        f"Adherence to the question is {left}." if _has_adherence(table) else "",
    )


def _has_adherence(table: pd.DataFrame) -> bool:
    return "adherence" in table and bool(table["adherence"].notna().any())
