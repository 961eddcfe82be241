"""A number in a prompt, swept: does what the model expects of the other's feeling rise with it?

>>> asked = number_questions({"dog": "Our dog has been missing for {n} days."}, [1, 2, 5, 10, 30])
>>> table = emolab.choices(model, asked, ["worried", "calm"])
>>> number_trends(table[table["option"] == "worried"])[["situation", "rho", "p"]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from emolab.answers.queries import query_table
from emolab.base.errors import EmolabError, need_numbers, need_table, shown
from emolab.base.stats import bh
from emolab.base.tables import noted
from emolab.models.model import Model
from emolab.models.prompts import encode, plan_batches, prompt_ids, render_prompts
from emolab.steering.along import need_readable, read_along
from emolab.vectors.vectors import EmotionVectors

FEELING = "How do you feel about it: calm or worried?"


def number_questions(templates: Mapping[str, str], values: Sequence[float], question: str = FEELING) -> pd.DataFrame:
    """Each template with each number in the place of "{n}", then the question: `query_id, query, situation, number`.

    >>> number_questions({"dog": "Our dog has been missing for {n} days."}, [1, 2])["query"][1]
    'Our dog has been missing for 2 days. How do you feel about it: calm or worried?'

    `situation` is the template's name. Raises EmolabError for a template without "{n}" and for what is no number.
    """
    values = need_numbers("values", values)
    if not isinstance(templates, Mapping) or not templates:
        raise EmolabError(f'the templates are {shown(templates)}; expected {{name: text with "{{n}}"}}')
    rows = []
    for name, template in templates.items():
        if not isinstance(template, str) or "{n}" not in template:
            raise EmolabError(f'the template {name!r} is {shown(template)}; expected a text with "{{n}}" in it')
        for i, value in enumerate(values, 1):
            query = f"{template.replace('{n}', f'{value:.15g}')} {question}".strip()
            rows.append((f"{name}-{i:02d}", query, name, value))
    return pd.DataFrame(rows, columns=["query_id", "query", "situation", "number"])


def last_projections(
    model: Model, questions: pd.DataFrame, vectors: EmotionVectors, *, site: str = "resid", layers: str | Sequence[int]
) -> pd.DataFrame:
    """How far each prompt's last token, where the answer begins, points along each vector of unit norm.

    >>> last_projections(model, number_questions({"wasps": "I see {n} wasps."}, [1, 9]), vectors, layers=[20])

    One row a question, layer and emotion, with the columns of the questions and `projection`. Compare prompts with each
    other, and take part "specific" (`vectors.part`): what all prompts and all emotions share says nothing. Raises
    EmolabError for site "head" and as `Steering`.
    """
    numbers = need_readable(model, vectors, site=site, layers=layers)
    questions = query_table(questions)
    prompts = render_prompts(model, list(questions["query"]))
    projections = np.empty((len(prompts), len(numbers), len(vectors.emotions)))
    for rows in plan_batches(model, [len(ids) for ids in prompt_ids(model, prompts)]):
        batch = encode(model, [prompts[i] for i in rows])
        projections[rows] = read_along(model, vectors, batch, site=site, layers=numbers, n=1)[0][:, 0]
    cells = [questions["query_id"], numbers, vectors.emotions]
    index = pd.MultiIndex.from_product(cells, names=["query_id", "layer", "emotion"])
    table = pd.Series(projections.ravel(), index, name="projection").reset_index()
    return questions.drop(columns="emotion", errors="ignore").merge(table, on="query_id")


def number_trends(table: pd.DataFrame, measure: str = "p", *, n: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Does a measure rise with the number? Rank correlation in each situation, with the numbers permuted.

    >>> number_trends(table[table["option"] == "worried"])                                # doctest: +SKIP

    table: `emolab.choices` of `number_questions`, rows of one option; or `last_projections` with measure "projection".

    Returns:
        One row a situation, and as far as the table has them frightening, emotion, control, alpha and layer: `rho`
        (Spearman), p (two-sided, the share of n permutations that reach it), q over all rows (Benjamini-Hochberg) and
        `k` numbers. Situation "all" is the mean over situations, whose number is its `k`.

    Raises:
        EmolabError: without these columns.
    """
    need_table(table, ("situation", "number", measure), "emolab.choices of number_questions")
    by = [c for c in ("frightening", "emotion", "control", "alpha", "layer") if c in table]
    rng, rows, nulls = np.random.default_rng(seed), [], {}
    for names, cell in table.groupby(["situation", *by], sort=False):
        curve = cell.groupby("number")[measure].mean()
        ranks, places = rankdata(curve), np.arange(len(curve), dtype=float)
        ranks, places = ranks - ranks.mean(), places - places.mean()
        size = np.sqrt((ranks @ ranks) * (places @ places)) or np.nan
        rhos = np.append(ranks @ places, rng.permuted(np.tile(places, (n, 1)), axis=1) @ ranks) / size
        nulls.setdefault(names[1:], []).append(rhos)
        rows.append((*names, rhos[0], _reached(rhos), len(curve)))
    for names, of_situations in nulls.items():
        rhos = np.mean(of_situations, axis=0)
        rows.append(("all", *names, rhos[0], _reached(rhos), len(of_situations)))
    trends = pd.DataFrame(rows, columns=["situation", *by, "rho", "p", "k"])
    trends["q"] = bh(trends["p"])
    n_questions = f"{table['query_id'].nunique()} questions"
    return noted(trends, table, n=n_questions, seed=seed, params={"measure": measure})


def _reached(rhos: np.ndarray) -> float:
    """The share of correlations as large as the first, either way."""
    return float((np.abs(rhos) >= abs(rhos[0]) - 1e-12).mean()) if np.isfinite(rhos[0]) else float("nan")
