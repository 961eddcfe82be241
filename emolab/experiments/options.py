"""Choices between given answers: how likely each is, steered and not, beside directions of equal norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.jobs import prompts_of
from emolab.answers.logprobs import token_logprobs
from emolab.answers.queries import query_table
from emolab.answers.writing import Writing, need_writing
from emolab.base.calls import once
from emolab.base.errors import EmolabError, need_model, need_table, need_texts, shown
from emolab.base.labels import NEUTRAL
from emolab.base.stats import bh, bootstrap_ci, clusters_of, sign_flip
from emolab.base.storage import read_json
from emolab.base.tables import noted
from emolab.data import FOLDER
from emolab.experiments.amounts import number_questions
from emolab.experiments.dose_response import dose_curves
from emolab.experiments.headline import sweep_about
from emolab.experiments.sweeps import directions_of, planned
from emolab.models.model import Model
from emolab.steering.settings import FIELDS, need_one_of
from emolab.steering.steering import Steering
from emolab.vectors.vectors import EmotionVectors

DRAWS = 8  # random directions for every question: single ones differ much, and no text has to be written
_COLUMNS = ("query_id", "query", "emotion", "situation", "alpha", "control", "seed")
_CHOICE = ("option", "logprob", "per_token", "p", "top")


def choices(
    model: Model,
    questions: pd.DataFrame | Sequence[str],
    options: Sequence[str] | Sequence[Sequence[str]],
    *,
    steering: EmotionVectors | Steering | Sequence[Steering] | None = None,
    alphas: Sequence[float] = (0.0, 1.0),
    controls: Sequence[str] = ("random",),
    by: str = "sum",
    writing: Writing = Writing(),
) -> pd.DataFrame:
    """How likely the model finds each of the given answers to each question; nothing is written.

    >>> table = emolab.choices(model, ["Should I swim in the lake?", "Should I take the train?"], ["Yes", "No"])
    >>> joyful = emolab.Steering(vectors, {"joy": 1.0}, site="attn")
    >>> table = emolab.choices(model, ["Is it late?"], ["Yes", "No"], steering=joyful, alphas=(0, 1, 2))

    Args:
        questions: texts, or a table with `query_id, query`, whose other columns are handed on; questions of one
            `situation`, as the two orders of a pair, count as one in intervals.
        options: at least two answers to every question, or one list of them for each. An answer is what the reply
            begins with: its end counts for nothing.
        steering: directions, as in `emolab.sweep`; None: unsteered alone.
        alphas: doses, as in `emolab.sweep`.
        controls: as in `emolab.sweep`, but every question is asked with each of eight random (or shuffled) directions.
        by: what `p` compares: "sum", the probability of the whole answer, or "token", its mean per token in nats, for
            answers of different length.
        writing: its `templates` are the wording of the prompts, its seed that of the controls.

    Returns:
        One row for each question, direction, control, dose and option: the columns of `emolab.sweep` without `text`
        (unsteered alone: without the setting's), then `option`, `logprob` (nats, summed over the option's tokens),
        `per_token`, `p` (softmax over the question's options) and `top` (the likeliest).

    Raises:
        EmolabError: fewer than two options, equal ones, lists of options that are not as many as the questions, an
            unknown `by`, and as `emolab.sweep`.
    """
    need_model(model)
    need_writing(writing)
    need_one_of("by", by, ("sum", "token"))
    questions = query_table(questions)
    offered = dict(zip(questions["query_id"], _offered(options, len(questions)), strict=True))
    if steering is None:
        table = questions.assign(situation=questions.get("situation", questions["query_id"]))
        table = table.assign(emotion=NEUTRAL, alpha=0.0, control="none", seed=-1)[list(_COLUMNS)]
        steerings, conditions = [None] * len(table), [NEUTRAL] * len(table)
    else:
        table, steerings, conditions = planned(
            model, directions_of(steering), questions, alphas, controls, seed=writing.seed, draws=DRAWS
        )
    prompts = prompts_of(model, list(table["query"]), conditions, writing)
    table["option"] = table["query_id"].map(offered)
    asked = [
        (prompt, option, steered)
        for prompt, some, steered in zip(prompts, table["option"], steerings, strict=True)
        for option in some
    ]
    logprobs = once(asked, lambda jobs: _read(model, jobs, writing))
    more = [c for c in questions if c not in (*_COLUMNS, *FIELDS, *_CHOICE, "split")]
    table = table.merge(questions[["query_id", *more]], on="query_id", how="left")
    table = table.reset_index(names="asked").explode("option", ignore_index=True)
    table["logprob"], table["per_token"] = [x.sum() for x in logprobs], [x.mean() for x in logprobs]
    score = table["logprob" if by == "sum" else "per_token"]
    weight = pd.Series(np.exp(score - score.groupby(table["asked"]).transform("max")), table.index)
    table["p"], table["top"] = weight / weight.groupby(table["asked"]).transform("sum"), weight == 1
    n = f"{len(questions)} questions"
    return noted(table.drop(columns="asked"), model, n=n, seed=writing.seed, params={"by": by})


def _offered(options: Any, n: int) -> list[list[str]]:
    """The options of each of n questions."""
    lists = list(options) if isinstance(options, list | tuple) else []
    if lists and all(isinstance(one, list | tuple) for one in lists):
        if len(lists) != n:
            raise EmolabError(f"there are {len(lists)} lists of options and {n} questions; expected one list for each")
    else:
        lists = [options] * n
    lists = [need_texts("options", one, filled=True) for one in lists]
    for one in lists:
        if len(set(one)) < max(2, len(one)):
            raise EmolabError(f"the options are {shown(one)}; expected at least two, all different")
    return lists


def _read(model: Model, jobs: list[tuple[str, str, Steering | None]], writing: Writing) -> list[np.ndarray]:
    prompts, texts, steerings = map(list, zip(*jobs, strict=True))
    return token_logprobs(model, prompts, texts, steering=steerings, batch_size=writing.batch_size)


def choice_shifts(table: pd.DataFrame, *, measure: str = "p", seed: int = 0) -> pd.DataFrame:
    """What steering does to one option, by dose: its probability, beside that of random directions.

    >>> table = emolab.choices(model, ["Is it late?", "Is it far?"], ["Yes", "No"], steering=emolab.at(vectors))
    >>> choice_shifts(table[table["option"] == "Yes"])[["emotion", "control", "alpha", "value", "lo", "hi"]]

    table: of `emolab.choices`, the rows of one option of each question. measure: "p", "logprob" or "per_token".

    Returns:
        One row for each emotion, control and dose: `value`, mean over questions, with its 95 % interval `lo, hi`
        (situations drawn); `shift`, less the unsteered value, with `shift_lo, shift_hi`; of the vector itself also
        `minus_random, minus_random_lo, minus_random_hi`, p from sign flips and q over all cells
        (Benjamini-Hochberg). `draws_lo, draws_hi`: the least and the largest shift of a single random direction at this
        dose, which the vector has to pass, too: questions are many, directions few. `n` questions.

    Raises:
        EmolabError: several options of one question, no unsteered rows, and several settings.
    """
    need_table(table, (*_COLUMNS, "option", measure), "emolab.choices")
    if table.duplicated(["query_id", "emotion", "control", "alpha", "seed"]).any():
        raise EmolabError('the table holds several options of one question; take one: table[table["option"] == "Yes"]')
    clusters, tables = clusters_of(table), []
    curves = dose_curves(table[table["control"] != "prompt"].assign(value=table[measure]))
    for (emotion, control), curve in curves.items():
        random = curves.get((emotion, "random")) if control == "none" else None
        minus = curve * np.nan if random is None else (curve - random).reindex(columns=curve.columns)
        shift = curve.sub(curve[0.0], axis=0)
        parts = {"value": curve, "shift": shift, "minus_random": minus * np.where(curve.columns == 0, np.nan, 1)}
        wide, groups = pd.concat(parts, axis=1), clusters.loc[curve.index]
        bounds = bootstrap_ci(wide, lambda x: np.nanmean(x, axis=0), clusters=groups, seed=seed)
        cells = pd.DataFrame({"emotion": emotion, "control": control, "alpha": curve.columns, "n": len(curve)})
        for part, of_part in zip(parts, np.split(np.array(bounds), len(parts), axis=1), strict=True):
            low, high = ("lo", "hi") if part == "value" else (f"{part}_lo", f"{part}_hi")
            cells[[part, low, high]] = of_part.T
        cells["p"] = sign_flip(parts["minus_random"], clusters=groups, seed=seed)
        drawn = table[(table["emotion"] == emotion) & (table["control"] == "random")]
        draws = drawn.groupby(["alpha", "seed"])[measure].mean().sub(curve[0.0].mean()).groupby("alpha")
        cells["draws_lo"], cells["draws_hi"] = cells["alpha"].map(draws.min()), cells["alpha"].map(draws.max())
        tables.append(cells)
    shifts = pd.concat(tables, ignore_index=True)
    shifts["q"] = bh(shifts["p"])
    option = list(dict.fromkeys(table["option"]))
    origin = sweep_about(table, measure=measure, option=option[0] if len(option) == 1 else None)
    shifts.attrs["about"] = {**origin, "n": f"{table['query_id'].nunique()} questions", "seed": seed}
    return shifts


def load_choices(name: str) -> pd.DataFrame:
    """A bundled set of things to choose from: "activities", "numbers" or "advice".

    >>> load_choices("activities").columns.to_list(), load_choices("numbers").columns.to_list()
    (['activity', 'category', 'pleasant'],
     ['query_id', 'query', 'situation', 'number', 'frightening'])

    "activities": 16 of eight categories, half of them pleasant, for `pair_questions`. "numbers": statements with a
    number that should frighten more the larger it is, and two where it should not, followed by the question how the
    other feels. "advice": everyday questions of what one should do, to be answered with yes or no.

    Raises EmolabError for another name.
    """
    need_one_of("set of choices", name, ("activities", "numbers", "advice"))
    rows = read_json(FOLDER / "choices" / f"{name}.json", "a bundled set")[name]
    if name == "activities":
        return pd.DataFrame(rows)
    if name == "advice":
        return query_table(rows)[["query_id", "query"]]
    tables = [number_questions({row["name"]: row["template"]}, row["values"]) for row in rows]
    return pd.concat(
        [one.assign(frightening=row["frightening"]) for one, row in zip(tables, rows, strict=True)], ignore_index=True
    )
