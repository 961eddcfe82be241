"""Queries of one purpose, and what methods make of them: texts, damage and scores, kept as they are made.

>>> chosen = Asked(asking, "select", queries)
>>> scored = chosen.scored([(method, {"joy": (0.5, 1.0)})])
>>> chosen.measure_damage(method, [[("joy", 0.5), ("joy", 1.0)]])
>>> chosen.damage(method, "joy", 0.5)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from jaxtyping import Float

from emolab.answers.jobs import Store, run_jobs
from emolab.answers.writing import Writing
from emolab.base.storage import digest, kept, stable
from emolab.comparisons.comparison import Comparison
from emolab.comparisons.methods import UNSTEERED, Method, instruction_method, plain_method
from emolab.experiments.headline import headline
from emolab.judges.judges import judges_of
from emolab.judges.scoring import perplexity, score
from emolab.models.model import Model
from emolab.models.workers import workers

Doses = Mapping[str, Sequence[float]]  # by emotion


@dataclass(frozen=True, eq=False)
class Asking:
    """How every query is asked and every answer judged; `settings` tell this comparison from another one."""

    comparison: Comparison
    judges: Any
    max_new_tokens: int
    writing: Writing
    settings: dict[str, Any]

    def kept(self, name: str, settings: dict[str, Any], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        path = self.comparison.path(name)
        return make() if path is None else kept(path, self.settings | settings, make)


class Asked:
    """A set of queries, the answers of the model left alone, and the seconds that these took."""

    def __init__(self, asking: Asking, name: str, table: pd.DataFrame) -> None:
        self.asking = asking
        self.name = name
        self.table = table
        self.queries = list(table["query"])
        self._texts: dict[tuple, list[str]] = {}
        self._damage: dict[tuple, list[np.ndarray]] = {}
        plain = asking.kept(f"baselines/{name} unsteered", {"queries": digest(self.queries)}, self._answer_plainly)
        self.unsteered = list(plain["text"])
        self.seconds = float(plain["seconds"].iloc[0])

    def _answer_plainly(self) -> pd.DataFrame:
        start = time.perf_counter()
        method = plain_method(self.asking.comparison.model)
        texts = method.texts(
            self.queries, [{}], max_new_tokens=self.asking.max_new_tokens, writing=self.asking.writing
        )[0]
        return pd.DataFrame({"text": texts, "seconds": time.perf_counter() - start})

    def scored(self, wanted: Sequence[tuple[Method, Doses]]) -> pd.DataFrame:
        """Headline scores of these texts, and of unsteered ones (alpha 0) and of the plain instruction beside them."""
        emotions = self.asking.comparison.vectors.emotions
        instruction = instruction_method(self.asking.comparison.model)  # sets the level of fluency
        wanted = [(instruction, dict.fromkeys(emotions, (1.0,))), *wanted]
        self._answer(wanted)
        asked = self.table[[c for c in ("query_id", "query", "situation") if c in self.table]]
        parts = [
            asked.assign(emotion=e, alpha=0.0, control="none", method=UNSTEERED, setting="", text=self.unsteered)
            for e in emotions
        ]
        keys = [_key(m, e, dose) for m, by_emotion in wanted for e, doses in by_emotion.items() for dose in doses]
        for name, setting, emotion, dose in dict.fromkeys(keys):
            part = asked.assign(emotion=emotion, alpha=dose, control="none", method=name, setting=setting)
            parts.append(part.assign(text=self._texts[name, setting, emotion, dose]))
        table = pd.concat(parts, ignore_index=True)
        identity = digest([stable(judges_of(self.asking.judges)), *map(str, keys), *table["text"]])
        scored = self.asking.kept(f"baselines/{self.name} scores", {"scored": identity}, lambda: self._score(table))
        instructed = scored[(scored["method"] == "instruction") & (scored["alpha"] == 1.0)]
        return headline(scored, instructed)

    def _score(self, table: pd.DataFrame) -> pd.DataFrame:
        # Not score(model=...), which reads every text a second time, after the plain prompt.
        queries, texts, conditions = (list(table[column]) for column in ("query", "text", "emotion"))
        perplexities = perplexity(self.asking.comparison.model, queries, texts, conditions=conditions)
        return score(table, judges=self.asking.judges).assign(perplexity_instructed=perplexities)

    def _answer(self, wanted: Sequence[tuple[Method, Doses]]) -> None:
        """Generate the texts of each method, all doses of an emotion together."""
        by_method: dict[tuple, tuple[Method, dict[tuple[str, float], None]]] = {}
        for method, by_emotion in wanted:
            jobs = by_method.setdefault((method.name, method.setting), (method, {}))[1]
            jobs |= {(emotion, float(dose)): None for emotion, doses in by_emotion.items() for dose in doses}
        for method, jobs in by_method.values():
            jobs = list(jobs)
            emotions = dict.fromkeys(emotion for emotion, _ in jobs)
            plan = [[i for i, (emotion, _) in enumerate(jobs) if emotion == one] for one in emotions]
            shared = (method, self.queries, self.asking.max_new_tokens, self.asking.writing)
            values = self._run("texts", _write, method, jobs, plan, shared)
            self._texts |= {_key(method, *job): list(value) for job, value in zip(jobs, values, strict=True)}

    def measure_damage(self, method: Method, plan: Sequence[Sequence[tuple[str, float]]]) -> None:
        """Measure the KL of the method with these emotions at these doses; each list of `plan` at once."""
        number = {job: i for i, job in enumerate(dict.fromkeys(job for chunk in plan for job in chunk))}
        jobs = list(number)
        if method.name == UNSTEERED:
            values = [[[0.0]] * len(self.queries)] * len(jobs)
        else:
            chunks = [[number.pop(job) for job in dict.fromkeys(chunk) if job in number] for chunk in plan]
            values = self._run("damage", _measure, method, jobs, chunks, (method, self.queries, self.unsteered))
        for job, value in zip(jobs, values, strict=True):
            self._damage[_key(method, *job)] = [np.asarray(kl, dtype=float) for kl in value]

    def damage(self, method: Method, emotion: str, dose: float) -> list[Float[np.ndarray, " token"]]:
        """The KL at every token of each unsteered answer, as `measure_damage` found it."""
        return self._damage[_key(method, emotion, dose)]

    def _run(self, kind: str, function: Callable, method: Method, jobs: list, plan: list, shared: tuple) -> list:
        settings = self.asking.settings | {"queries": digest(self.queries), "jobs": digest(map(str, jobs))}
        title = f"{self.name} {method.name} {method.setting} {kind}".replace("  ", " ")
        store = Store(self.asking.comparison.path(f"baselines/{quote(title, safe=' ,')}"), settings)
        with workers(None):  # methods hold models of their own, which no worker has
            model = self.asking.comparison.model
            return run_jobs(model, function, jobs, plan, name=title, store=store, shared=shared)


def _key(method: Method, emotion: str, dose: float) -> tuple[str, str, str, float]:
    return (method.name, method.setting, emotion, float(dose))


def _write(_: Model, shared: tuple, jobs: list[tuple[str, float]]) -> list[list[str]]:
    method, queries, max_new_tokens, writing = shared
    settings = [{emotion: dose} for emotion, dose in jobs]
    return method.texts(queries, settings, max_new_tokens=max_new_tokens, writing=writing)


def _measure(_: Model, shared: tuple, jobs: list[tuple[str, float]]) -> list[list[list[float]]]:
    method, queries, texts = shared
    kls = method.kls(queries, texts, [{emotion: dose} for emotion, dose in jobs])
    return [[kl.tolist() for kl in by_query] for by_query in kls]
