"""Scored sweeps, row by row: the target's probability, the unsteered text, and one headline score for each text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError, need_table, shown
from emolab.base.labels import NEUTRAL, order
from emolab.base.stats import clusters_of, harmonic
from emolab.base.tables import about
from emolab.judges.judges import UNREAD
from emolab.steering.settings import FIELDS, HELD, parse_mixture


def headline(scored: pd.DataFrame, instructed: pd.DataFrame | None = None) -> pd.DataFrame:
    """The same rows plus `emotion_score, adherence_score, fluency_score` and their harmonic mean `overall`, all 0..1.

    >>> headline(scored, instructed).groupby(["emotion", "alpha"])["overall"].mean()

    Args:
        scored: a scored sweep, of one or many settings, with unsteered rows (control "none", alpha 0).
        instructed: scored answers under instruction, which set the level of fluency; of the same or other queries.
            Without them the rows of control "prompt" do, and without these unsteered texts.

    Returns:
        emotion_score: `target_p`. adherence_score: how much nearer a text is to its query than to others, over the same
        of the unsteered text to that query; NaN where that one is no nearer. fluency_score: the worst of perplexity
        (given the instruction, where known), compression, distinct word pairs and words that do not repeat, as far as
        the table has them, each against the median of the instructed answers, better counting as 1; 0 for an empty
        text, and for one that loops, which perplexity alone prefers. overall: their harmonic mean, AxBench's rule
        (arXiv 2501.17148), so that no part buys another.

    Raises:
        EmolabError: no unsteered rows, no judge's column for an emotion, or no instructed answer for it.
    """
    plain = is_unsteered(scored, needed=True)
    table = scored.assign(emotion_score=target_p(scored), adherence_score=np.nan)
    if {"adherence", "adherence_shuffled"} <= set(table):
        nearer = table["adherence"] - table["adherence_shuffled"]
        unsteered = nearer[plain].groupby(table["query_id"][plain]).mean()
        table["adherence_score"] = (nearer / table["query_id"].map(unsteered.where(unsteered > 0))).clip(0, 1)
    perplexity = perplexity_column(table)
    level = fluent_level(table, instructed).loc[table["emotion"]].set_axis(table.index)
    parts = {c: table[c] / level[c] for c in ("compression", "distinct2") if c in table}
    if "repetition" in table:
        parts["repetition"] = (1 - table["repetition"]) / (1 - level["repetition"])
    if perplexity:
        parts["perplexity"] = level["perplexity"] / table[perplexity]
    fluency = pd.DataFrame(parts, index=table.index).min(axis=1).clip(0, 1)
    if perplexity:
        fluency = fluency.where(table[perplexity].notna())
    broken = table["loop"].eq(True) if "loop" in table else pd.Series(False, table.index)
    if "text" in table:
        broken |= table["text"].str.strip() == ""
    table["fluency_score"] = fluency.mask(broken, 0.0)
    table["overall"] = harmonic(*(table[f"{part}_score"] for part in ("emotion", "adherence", "fluency")))
    return table


def target_p(table: pd.DataFrame) -> pd.Series:
    """The first judge's probability of each row's target; of a mixture the sum over its emotions.

    >>> target_p(scored).groupby(scored["alpha"]).mean()

    Raises EmolabError where the judge does not know an emotion of the table.
    """
    need_table(table, ("emotion",), "emolab.score(emolab.sweep(...))")
    target = pd.Series(np.nan, table.index)
    for column in [c for c in table if str(c).startswith("p_")]:
        p = table[column]
        odd = p[(p < -1e-6) | (p > 1 + 1e-6)] if pd.api.types.is_numeric_dtype(p) else p
        if len(odd):
            raise EmolabError(f"column {column} holds {shown(odd.iloc[0])}; expected probabilities, from 0 to 1")
    for name in table["emotion"].unique():
        rows = table["emotion"] == name
        target[rows] = table.loc[rows, ["p_" + e for e in _targets(name, table)]].sum(axis=1, skipna=False)
    return target


def is_hit(table: pd.DataFrame) -> pd.Series:
    """1.0 where the judge's top label is the target, else 0.0; the column `target` where the table brings it.

    NaN where the judge could not read the text (top "unread"). Raises EmolabError as `target_p`, and for other missing
    probabilities.
    """
    if "target" in table:
        return table["target"].astype(float)
    targets = {name: _targets(name, table) for name in table["emotion"].unique()}
    top = read_labels(table)
    hits = pd.Series([float(t in targets[e]) for t, e in zip(top, table["emotion"], strict=True)], table.index)
    return hits.mask(top == UNREAD)


def judged_labels(table: pd.DataFrame) -> list[str]:
    """The labels that the first judge knows, from the columns p_<label>."""
    return [str(c)[2:] for c in table if str(c).startswith("p_")]


def read_labels(table: pd.DataFrame) -> pd.Series:
    """The first judge's likeliest label of each text, "unread" where it could not read it.

    Raises EmolabError without p_<label> columns, and where they lack a value of a text that was read.
    """
    columns = [f"p_{label}" for label in judged_labels(table)]
    if not columns:
        raise EmolabError("no p_<emotion> columns; run emolab.score on the table first")
    unread = table["top"] == UNREAD if "top" in table else pd.Series(False, table.index)
    if table.loc[~unread, columns].isna().any(axis=None):
        raise EmolabError("the p_<emotion> columns hold missing values; score the whole table")
    return table[columns].fillna(0).idxmax(axis=1).str[2:].mask(unread, UNREAD)


def instructed_answers(scored: pd.DataFrame) -> pd.DataFrame:
    """Scored answers under instruction, not the neutral ones; `emotion` is what the model was told.

    >>> is_hit(instructed_answers(instructed)).mean()
    """
    told = scored[scored["condition"] != NEUTRAL]
    return told.assign(emotion=told["condition"])


def is_unsteered(table: pd.DataFrame, *, needed: bool = False) -> pd.Series:
    """True for unsteered rows: control "none" at alpha 0; with op "clamp" and "cap", 0 is an edit, too.

    needed: EmolabError where an emotion has none.
    """
    need_table(table, ("query_id", "emotion", "alpha", "control"), "emolab.score(emolab.sweep(...))")
    odd = [e for e in table["emotion"].unique() if not isinstance(e, str)]
    if odd or not pd.api.types.is_numeric_dtype(table["alpha"]) or table["alpha"].isna().any():
        what = f"emotion holds {odd[0]!r}, no name" if odd else "alpha holds something else than numbers"
        raise EmolabError(f"the table's column {what}; it comes from emolab.score(emolab.sweep(...))")
    plain = (table["control"] == "none") & (table["alpha"] == 0)
    if "op" in table:
        plain &= ~table["op"].isin(HELD)
    lost = set(table["emotion"]) - set(table.loc[plain, "emotion"])
    if needed and lost:
        raise EmolabError(
            f'effects are measured from unsteered texts: {order(lost)[0]} needs rows of control "none", alpha 0 '
            '(op "clamp" and "cap" have none: append those of a sweep with op "add")'
        )
    return plain


def one_setting(table: pd.DataFrame, fields: Iterable[str] = FIELDS) -> None:
    """EmolabError for a table of several sites, layers, parts or other settings, which no curve may mix."""
    steered = _steered(table)
    for field in [f for f in fields if f in table]:
        kinds = sorted({str(value) for value in steered[field]})
        if len(kinds) > 1:
            raise EmolabError(f"this table mixes {field} = {', '.join(kinds[:5])}; filter it to one of them")


def sweep_about(scored: pd.DataFrame, **params: Any) -> dict[str, Any]:
    """Model, n and seed of a scored sweep (`base.tables.about`), and as params what is the same in all steered rows.

    >>> sweep_about(scored)["params"]["site"]
    'attn'
    """
    steered = _steered(scored)
    same = {f: steered[f].iloc[0] for f in (*FIELDS, "alpha") if f in steered and steered[f].nunique() == 1}
    origin = about(scored)
    return {**origin, "params": {**origin["params"], **{f: str(value) for f, value in same.items()}, **params}}


def with_instructed(scored: pd.DataFrame, instructed: pd.DataFrame | None) -> pd.DataFrame:
    """The sweep and, as its control "prompt" where it has none, the answers to its queries under instruction."""
    if instructed is None or (scored["control"] == "prompt").any():
        return scored
    told, clusters = _answers(scored, instructed), clusters_of(scored)
    told = told[told["query_id"].isin(clusters.index) & told["emotion"].isin(scored["emotion"])]
    told = told.assign(control="prompt", alpha=0.0, situation=told["query_id"].map(clusters))
    told = told[[c for c in scored if c in told]]
    return pd.concat([scored, told], ignore_index=True) if len(told) else scored


def fluent_level(table: pd.DataFrame, instructed: pd.DataFrame | None) -> pd.DataFrame:
    """Median perplexity and the like [emotion, measure] of instructed answers, else of unsteered texts.

    A mixture without answers of its own takes those to its emotions.
    """
    columns = {measure: measure for measure in ("compression", "distinct2", "repetition")}
    columns["perplexity"] = perplexity_column(table) or "perplexity"
    answers, plain, levels = _answers(table, instructed), table[is_unsteered(table)], {}
    for emotion in table["emotion"].unique():
        texts = answers[answers["emotion"] == emotion]
        if texts.empty:
            texts = answers[answers["emotion"].isin(parse_mixture(emotion))]
        if texts.empty and instructed is not None:
            known = ", ".join(order(answers["emotion"])) or "nothing"
            raise EmolabError(f"there is no answer under instruction for {emotion}; the answers are for {known}")
        if texts.empty:
            texts = plain[plain["emotion"] == emotion]
        levels[emotion] = {m: texts[c].median() if c in texts else np.nan for m, c in columns.items()}
    return pd.DataFrame.from_dict(levels, orient="index")


def perplexity_column(table: pd.DataFrame) -> str | None:
    """Given the instruction, where known: emotional text is not surprising for being emotional."""
    return next((c for c in ("perplexity_instructed", "perplexity") if c in table and table[c].notna().any()), None)


def _targets(name: str, table: pd.DataFrame) -> list[str]:
    judged = judged_labels(table)
    doses = {name: 1.0} if name in judged else parse_mixture(name)
    if not set(doses) <= set(judged):
        known = f"the judge knows {', '.join(judged)}" if judged else "there are no p_<emotion> columns"
        raise EmolabError(f"no probability of {name!r}: {known}; run emolab.score with a judge of these emotions first")
    return [emotion for emotion, dose in doses.items() if dose > 0] or list(doses)


def _steered(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are steered, with the vector or a control."""
    return table[~is_unsteered(table) & (table["control"] != "prompt")]


def _answers(table: pd.DataFrame, instructed: pd.DataFrame | None) -> pd.DataFrame:
    """Scored answers under instruction, `emotion` being what the model was told."""
    if instructed is None:
        return table[table["control"] == "prompt"]
    need_table(instructed, (), "emolab.score of responses")
    return instructed_answers(instructed) if "condition" in instructed else instructed
