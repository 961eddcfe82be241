"""Texts of many methods, emotions and doses with their damage, kept in one file as they are made."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError
from emolab.base.progress import tracked
from emolab.base.storage import digest, read_table, write_table
from emolab.comparisons.methods import Method
from emolab.experiments.headline import headline
from emolab.judges.scoring import perplexity, score
from emolab.models.model import Model

_KEY = ["split", "method", "setting", "emotion", "dose"]
UNSTEERED = "unsteered"
_ANY = "any"  # the emotion of unsteered texts


@dataclass
class Asked:
    """Queries of one purpose, and the unsteered model's answers to them."""

    split: str
    table: pd.DataFrame
    answers: list[str] = field(default_factory=list)

    @property
    def queries(self) -> list[str]:
        return list(self.table["query"])


class Cells:
    """One cell: a method's answers to all queries of a split with an emotion at a dose, and the KL at unsteered ones.

    Held in memory and, with a folder, in `texts.parquet` in it, written after every method and emotion.
    """

    def __init__(self, folder: Path | None, identity: dict, max_new_tokens: int, writing: Writing) -> None:
        self.folder, self.identity = folder, identity
        self.options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "writing": writing}
        self.path = None if folder is None else folder / "texts.parquet"
        done = read_table(self.path, identity)
        self.rows: dict[tuple, dict] = {}
        for row in [] if done is None else done.to_dict("records"):
            kls = None if row["kls"] is None else [np.asarray(kl, dtype=float) for kl in row["kls"]]
            self._keep(tuple(row[k] for k in _KEY), list(row["texts"]), kls, row["seconds"])

    def unsteered(self, plain: Method, asked: Asked) -> float:
        """Generate the unsteered answers; seconds that it took."""
        key = (asked.split, UNSTEERED, "", _ANY, 0.0)
        if key not in self.rows:
            start = time.perf_counter()
            texts = plain.texts(asked.queries, [{}], **self.options)[0]
            self._keep(key, texts, [np.zeros(1)] * len(texts), time.perf_counter() - start)
            self.write()
        asked.answers = self.rows[key]["texts"]
        return float(self.rows[key]["seconds"])

    def fill(self, jobs: Iterable[tuple[Method, str, Sequence[float]]], asked: Asked) -> list[tuple]:
        """Generate what is missing of (method, emotion, doses); the keys of all that was asked for."""
        jobs, keys = list(jobs), []
        for method, emotion, doses in tracked(jobs, f"baselines, {asked.split}", "curve"):
            wanted = {dose: self._key(method, emotion, dose, asked) for dose in doses}
            keys += wanted.values()
            todo = [dose for dose, key in wanted.items() if key not in self.rows]
            if not todo:
                continue
            settings = [method.mixture(emotion, dose) for dose in todo]
            texts = method.texts(asked.queries, settings, **self.options)
            for dose, text in zip(todo, texts, strict=True):
                self._keep(wanted[dose], text, None, 0.0)
            self.write()
        return list(dict.fromkeys(keys))

    def kls(self, method: Method, wanted: Sequence[tuple[str, float]], asked: Asked) -> list[list[np.ndarray]]:
        """For each (emotion, dose) the KL at every token of each unsteered answer, worked out when first asked for.

        All at once, since the unsteered side is then read once.
        """
        keys = [self._key(method, emotion, dose, asked) for emotion, dose in wanted]
        todo = {key: one for key, one in zip(keys, wanted, strict=True) if self.rows[key]["kls"] is None}
        if todo:
            found = method.kls(asked.queries, asked.answers, [method.mixture(*one) for one in todo.values()])
            for key, kls in zip(todo, found, strict=True):
                self.rows[key]["kls"] = kls
        return [self.rows[key]["kls"] for key in keys]

    def scored(
        self, keys: list[tuple], asked: Asked, model: Model, emotions: Sequence[str], judges: Any
    ) -> pd.DataFrame:
        """The texts of these cells with their scores; unsteered ones stand under every emotion, at alpha 0."""
        parts, columns = [], [c for c in ("query_id", "query", "situation") if c in asked.table]
        for key in [(asked.split, UNSTEERED, "", _ANY, 0.0), *keys]:
            _, method, setting, emotion, dose = key
            for label in emotions if emotion == _ANY else [emotion]:
                named = {"emotion": label, "alpha": dose, "control": "none", "method": method, "setting": setting}
                parts.append(asked.table[columns].assign(**named, text=self.rows[key]["texts"]))
        table = pd.concat(parts, ignore_index=True)
        made = digest([*map(str, keys), *table["text"], *map(repr, [judges] if callable(judges) else judges or [])])
        settings = self.identity | {"scored": made}
        path = None if self.folder is None else self.folder / f"scores_{asked.split}.parquet"
        try:
            found = read_table(path, settings)
        except EmolabError:  # of other methods or judges: the texts are kept, their scores are made again
            found = None
        if found is None:
            found = score(table, judges=judges)
            # Not score(model=...), which reads every text a second time, after the plain prompt.
            options = {"conditions": table["emotion"]}
            found["perplexity_instructed"] = perplexity(model, table["query"], list(table["text"]), **options)
            write_table(found, path, settings)
        told = found[(found["method"] == "instruction") & (found["alpha"] == 1.0)]
        return headline(found, told)

    def _key(self, method: Method, emotion: str, dose: float, asked: Asked) -> tuple:
        emotion, dose = (_ANY, 0.0) if method.name == UNSTEERED else (emotion, float(dose))
        return (asked.split, method.name, method.setting, emotion, dose)

    def _keep(self, key: tuple, texts: list[str], kls: list[np.ndarray] | None, seconds: float) -> None:
        self.rows[key] = dict(zip(_KEY, key, strict=True)) | {"texts": texts, "kls": kls, "seconds": seconds}

    def write(self) -> None:
        """Write all cells, where there is a folder."""
        if self.path is not None:
            rows = [row | {"kls": row["kls"] and [kl.tolist() for kl in row["kls"]]} for row in self.rows.values()]
            write_table(pd.DataFrame(rows), self.path, self.identity)
