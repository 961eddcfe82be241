"""Queries steered with vectors and their controls, and what is measured of them; equal work is done once, and resumed.

>>> runs = SteeredRuns(comparison, queries, responses)
>>> cells = [Cell({"emotion": "joy", "alpha": 1.0}, runs.sources("whole")["none"], {"joy": 1.0})]
>>> runs.kept("kl", cells, lambda runs, rows, settings: rows.assign(kl=runs.kl("kl_jobs", rows, settings)), {})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab.answers.generation import generate
from emolab.answers.jobs import Store, chunks, run_jobs
from emolab.answers.logprobs import next_token_kl, token_logprobs
from emolab.answers.writing import Writing
from emolab.base.calls import once
from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import NEUTRAL
from emolab.base.stats import clusters_of
from emolab.base.storage import digest, read_table, write_table
from emolab.comparisons.comparison import Comparison
from emolab.models.model import Model
from emolab.steering.settings import described
from emolab.steering.steering import Steering, at
from emolab.vectors.controls import drawn_like, match_summed_norm
from emolab.vectors.corpus import check_origin
from emolab.vectors.vectors import EmotionVectors, match_norm

CHUNK = 256  # jobs that are done, and kept, together
Measure = Callable[["SteeredRuns", pd.DataFrame, dict], pd.DataFrame]


@dataclass(frozen=True)
class Cell:
    """One condition of a run: its labels in the table, and vectors by seed, which the queries take in turn."""

    labels: dict[str, str | float]
    sources: Mapping[int, EmotionVectors | None] = field(default_factory=lambda: {-1: None})
    doses: Mapping[str, float] = field(default_factory=dict)


class SteeredRuns:
    """A comparison at one setting, the queries `asked`, and the `answers` {(query_id, condition): (prompt, text)}.

    Asked are the queries with answers under neutral and every emotion. Raises EmolabError for several settings, and
    where fewer than two queries have all answers.
    """

    def __init__(self, comparison: Comparison, queries: pd.DataFrame, responses: pd.DataFrame) -> None:
        if len(comparison.settings) != 1:
            raise EmolabError("claims are asked at one setting; give Comparison(..., setting=emolab.Setting(...))")
        need_table(responses, ("query_id", "condition", "prompt", "text"), "emolab.collect_responses")
        need_table(queries, ("query_id", "query"), "emolab.load_queries")
        check_origin(comparison.model, responses)
        columns = responses.loc[responses["text"].str.strip() != "", ["query_id", "condition", "prompt", "text"]]
        self.comparison = comparison
        self.answers = {(query, c): (prompt, text) for query, c, prompt, text in columns.itertuples(index=False)}
        self.conditions = (NEUTRAL, *comparison.vectors.emotions)
        asked = queries[[all((query, c) in self.answers for c in self.conditions) for query in queries["query_id"]]]
        if len(asked) < 2:
            raise EmolabError(
                f"{len(asked)} of {len(queries)} queries have answers under {', '.join(self.conditions)}; at least two "
                'are needed: collect_responses(model, queries, pairing="all")'
            )
        self.asked = asked.assign(situation=asked["query_id"].map(clusters_of(asked)))
        self._steerings: dict[tuple, Steering] = {}

    def sources(self, part: str, controls: Sequence[str] = ()) -> dict[str, dict[int, EmotionVectors]]:
        """{control: vectors by seed}, "none" among them, all of that part and as long as it at every layer.

        controls: "random" and "shuffled" (three each), "shared": the direction that all emotions share.
        """
        if part == "shared":
            raise EmolabError('part is "shared"; the claims are about single emotions: expected whole or specific')
        site = self.comparison.settings[0].site
        vectors = self.comparison.vectors
        vectors.get(site)  # its error names the sites
        vectors = replace(vectors, data={site: vectors.data[site]})  # controls need not be made at other sites
        used = vectors.part(part)
        sources = {"none": {-1: replace(used, means=None)}}
        for control in controls:
            if control == "shared":
                made = {-1: _shared_like(vectors, used)}
            else:
                made = drawn_like(used, control, model=self.comparison.model, seed=self.comparison.seed)
            if site == "head":
                made = {seed: match_summed_norm(one, used) for seed, one in made.items()}
            sources[control] = made
        return sources

    def kept(self, name: str, cells: Iterable[Cell], measure: Measure, options: dict[str, Any]) -> pd.DataFrame:
        """The rows of these cells with what `measure(runs, rows, settings)` makes of them, kept and found again.

        options: stand among the settings, by which a file is known. Raises EmolabError where the file of this name was
        made with others.
        """
        rows = self._rows(cells)
        settings = self._settings(rows, options)
        path = self.comparison.path(name)
        finished = read_table(path, settings)
        if finished is not None:
            return finished
        return write_table(measure(self, rows, settings).drop(columns="steering"), path, settings)

    def _rows(self, cells: Iterable[Cell]) -> pd.DataFrame:
        """One row per cell and query: `query_id, situation`, the labels, `seed, steering` (None where unsteered)."""
        rows = []
        for cell in cells:
            variants = [(seed, self._steering(vectors, cell.doses)) for seed, vectors in cell.sources.items()]
            for number, query in enumerate(self.asked[["query_id", "situation"]].to_dict("records")):
                seed, steering = variants[number % len(variants)]
                rows.append({**query, **cell.labels, "seed": seed, "steering": steering})
        return pd.DataFrame(rows)

    def _steering(self, vectors: EmotionVectors | None, doses: Mapping[str, float]) -> Steering | None:
        """The same object for the same vectors and doses, so that equal work is known as such."""
        doses = {emotion: float(dose) for emotion, dose in doses.items() if dose}
        if vectors is None or not doses:
            return None
        key = (id(vectors), *sorted(doses.items()))
        if key not in self._steerings:
            self._steerings[key] = at(vectors, replace(self.comparison.settings[0], part="whole"), [doses])[0]
        return self._steerings[key]

    def _settings(self, rows: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
        """What tells this run from another one, for the files on disk."""
        answers = [x for query in self.asked["query_id"] for c in self.conditions for x in self.answers[query, c]]
        setting = described(self.comparison.settings[0], self.comparison.model.n_layers)
        return {
            **self.comparison.identity(),
            "setting": {field: str(value) for field, value in setting.items() if value != ""},
            "writing": Writing().settings(),
            "answers": digest(answers),
            "rows": digest(rows.drop(columns="steering").astype(str).to_numpy().ravel().tolist()),
            **options,
        }

    def texts(self, name: str, table: pd.DataFrame, settings: dict) -> list[str]:
        """Greedy answers of at most `max_new_tokens` of the settings."""
        jobs = list(zip(self._prompts(table), table["steering"], strict=True))
        return self._measured(name, _write, jobs, settings, settings["max_new_tokens"])

    def kl(self, name: str, table: pd.DataFrame, settings: dict) -> list[float]:
        """KL(changed || plain) of the next token in nats, mean over the tokens of the neutral answer."""
        plain = [self.answers[query, NEUTRAL] for query in table["query_id"]]
        changed = zip(plain, self._prompts(table), table["steering"], strict=True)
        jobs = [(prompt, text, other, steering) for (prompt, text), other, steering in changed]
        return self._measured(name, _mean_kl, jobs, settings)

    def logodds(self, name: str, table: pd.DataFrame, settings: dict) -> Float[np.ndarray, " row"]:
        """Mean log-probability of a token of the answer under the row's `target`, less that of the neutral answer."""
        rows = zip(table["query_id"], table["target"], self._prompts(table), table["steering"], strict=True)
        jobs = [
            (prompt, self.answers[query, condition][1], steering)
            for query, target, prompt, steering in rows
            for condition in (target, NEUTRAL)
        ]
        means = np.array(self._measured(name, _mean_logprob, jobs, settings)).reshape(-1, 2)
        return means[:, 0] - means[:, 1]

    def _prompts(self, table: pd.DataFrame) -> list[str]:
        """The plain prompt of each row; the instructed one where `control` is "prompt"."""
        conditions = np.full(len(table), NEUTRAL, dtype=object)
        if "emotion" in table:
            conditions = table["emotion"].where(table["control"] == "prompt", NEUTRAL)
        return [self.answers[key][0] for key in zip(table["query_id"], conditions, strict=True)]

    def _measured(self, name: str, measure: Callable, jobs: list[tuple], settings: dict, shared: Any = None) -> list:
        """The value of every job; equal ones are worked out once."""
        store = Store(self.comparison.path(name), settings)

        def run(different: list[tuple]) -> list:
            plan = chunks(len(different), CHUNK)
            title = name.replace("_", " ")
            return run_jobs(self.comparison.model, measure, different, plan, name=title, store=store, shared=shared)

        return once(jobs, run)


def _write(model: Model, max_new_tokens: int, jobs: list[tuple[str, Steering | None]]) -> list[str]:
    steerings = [steering for _, steering in jobs]
    return generate(model, [prompt for prompt, _ in jobs], steering=steerings, raw=True, max_new_tokens=max_new_tokens)


def _mean_kl(model: Model, jobs: list[tuple[str, str, str, Steering | None]]) -> list[float]:
    prompts, texts, others, steerings = map(list, zip(*jobs, strict=True))
    kls = next_token_kl(model, prompts, texts, other_prompts=others, steering=steerings)
    return [float(np.nanmean(kl)) for kl in kls]


def _mean_logprob(model: Model, jobs: list[tuple[str, str, Steering | None]]) -> list[float]:
    prompts, texts, steerings = map(list, zip(*jobs, strict=True))
    return [float(np.nanmean(x)) for x in token_logprobs(model, prompts, texts, steering=steerings)]


def _shared_like(vectors: EmotionVectors, used: EmotionVectors) -> EmotionVectors:
    """The shared part as the vector of every emotion, with the norm of `used` at every layer (and head)."""
    shared = vectors.part("shared").data
    data = {site: match_norm(shared[site].expand_as(x), like=x) for site, x in used.data.items()}
    return replace(used, data=data, means=None, meta={**used.meta, "control": "shared"})
