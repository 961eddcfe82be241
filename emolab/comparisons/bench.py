"""A bench for runs: queries with their answers, directions to steer with, and measures that resume where they stopped.

Every measure takes a table of rows, each with its own steering; equal work is done once, and results are written after
every chunk.

>>> bench = Bench.of(model, vectors, queries, responses, "attn", "all", seed=0, out="runs/x/claims")
>>> cells = [(("joy", 1.0), bench.steer(bench.sources("whole", ())["none"], {"joy": 1.0}))]
>>> table = bench.rows(cells, ("emotion", "alpha"))
>>> bench.texts("texts", table, bench.settings(table, max_new_tokens=80))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from emolab.answers.generation import generate
from emolab.answers.logprobs import next_token_kl, token_logprobs
from emolab.answers.writing import Writing
from emolab.base.errors import EmolabError, need_table
from emolab.base.labels import NEUTRAL
from emolab.base.progress import progress_bar
from emolab.base.stats import clusters_of
from emolab.base.storage import digest, read_table, user_path, write_table
from emolab.experiments.sweeps import RANDOM_DIRECTIONS, vectors_identity
from emolab.models.model import Model
from emolab.steering.steering import Steering
from emolab.vectors.activations import check_origin
from emolab.vectors.controls import match_summed_norm, random_like, shuffled_like
from emolab.vectors.vectors import EmotionVectors

_CHUNK = 256


@dataclass
class Bench:
    """What runs of one model at one site share. Make it with `Bench.of`.

    asked holds the queries that were answered under neutral and every emotion, answers {(query_id, condition):
    (prompt, text)}.
    """

    model: Model
    vectors: EmotionVectors
    asked: pd.DataFrame
    answers: dict[tuple[str, str], tuple[str, str]]
    place: dict[str, Any]
    seed: int
    out: Path | None
    _made: dict[tuple, Steering] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Model,
        vectors: EmotionVectors,
        queries: pd.DataFrame,
        responses: pd.DataFrame,
        site: str,
        layers: str | Sequence[int],
        seed: int,
        out: str | Path | None,
    ) -> Bench:
        """Raises EmolabError where fewer than two queries have all answers, and for a site that is not held."""
        need_table(responses, ("query_id", "condition", "prompt", "text"), "emolab.collect_responses")
        need_table(queries, ("query_id", "query"), "emolab.load_queries")
        check_origin(model, responses)
        told = responses[responses["text"].str.strip() != ""]
        columns = ["query_id", "condition", "prompt", "text"]
        answers = {(q, c): (p, t) for q, c, p, t in told[columns].itertuples(index=False)}
        conditions = (NEUTRAL, *vectors.emotions)
        asked = queries[[all((q, c) in answers for c in conditions) for q in queries["query_id"]]]
        if len(asked) < 2:
            raise EmolabError(
                f"{len(asked)} of {len(queries)} queries have answers under {', '.join(conditions)}; at least two are "
                'needed: collect_responses(model, queries, pairing="all")'
            )
        asked = asked.assign(situation=asked["query_id"].map(clusters_of(asked)))
        vectors.get(site)  # its error names the sites
        one = replace(vectors, data={site: vectors.data[site]})  # controls need not be made at other sites
        path = None if out is None else user_path(out)
        return cls(model, one, asked, answers, {"site": site, "layers": layers}, seed, path)

    def sources(self, part: str, controls: Sequence[str]) -> dict[str, list[tuple[int, EmotionVectors]]]:
        """{control: [(seed, vectors)]}, "none" among them, all of that part and as long as it at every layer.

        controls: "random", "shuffled" (three each), "shared": the direction that all emotions share.
        """
        if part not in ("whole", "specific"):
            raise EmolabError(f"part is {part!r}; the claims are about single emotions: expected whole or specific")
        used, seeds = self.vectors.part(part), range(self.seed, self.seed + RANDOM_DIRECTIONS)
        make: dict[str, Callable] = {
            "random": lambda: [(s, random_like(used, seed=s)) for s in seeds],
            "shuffled": lambda: [(s, shuffled_like(used, model=self.model, seed=s)) for s in seeds],
            "shared": lambda: [(-1, _shared_like(self.vectors, used))],
        }
        found = {control: make[control]() for control in controls}
        if self.place["site"] == "head":
            found = {c: [(s, match_summed_norm(v, used)) for s, v in variants] for c, variants in found.items()}
        return {"none": [(-1, used)], **found}

    def steer(
        self, variants: Sequence[tuple[int, EmotionVectors]], doses: Mapping[str, float]
    ) -> list[tuple[int, Steering | None]]:
        """(seed, steering) of each variant, None where all doses are 0; the same object for the same doses."""
        doses = {emotion: float(dose) for emotion, dose in doses.items() if dose}
        found = []
        for seed, v in variants:
            key = (id(v), *sorted(doses.items()))
            if doses and key not in self._made:
                self._made[key] = Steering(v, doses, **self.place)
            found.append((seed, self._made.get(key)))
        return found

    def rows(self, cells: Sequence[tuple[tuple, list]], names: Sequence[str]) -> pd.DataFrame:
        """`query_id, situation, *names, seed, steering`: a row for each cell (labels, variants) and query.

        The queries take the variants in turn, as in a sweep.
        """
        rows = [
            (q.query_id, q.situation, *labels, *variants[i % len(variants)])
            for labels, variants in cells
            for i, q in enumerate(self.asked.itertuples())
        ]
        return pd.DataFrame(rows, columns=["query_id", "situation", *names, "seed", "steering"])

    def settings(self, table: pd.DataFrame, **more: Any) -> dict[str, Any]:
        """What tells this run from another one, for the files on disk."""
        told = [
            x for q in self.asked["query_id"] for c in (NEUTRAL, *self.vectors.emotions) for x in self.answers[q, c]
        ]
        layers = self.place["layers"]
        return {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "vectors": vectors_identity(self.vectors),
            "site": self.place["site"],
            "layers": layers if isinstance(layers, str) else list(layers),
            "seed": self.seed,
            "writing": Writing().settings(),
            "answers": digest(told),
            "rows": digest(table.drop(columns="steering").astype(str).to_numpy().ravel().tolist()),
            **more,
        }

    def path(self, name: str) -> Path | None:
        return None if self.out is None else self.out / f"{name}.parquet"

    def texts(self, name: str, table: pd.DataFrame, settings: dict) -> list[str]:
        """Greedy answers."""

        def write(jobs: list[tuple]) -> list[str]:
            prompts, steerings = map(list, zip(*jobs, strict=True))
            limit = settings["max_new_tokens"]
            return generate(self.model, prompts, steering=steerings, raw=True, max_new_tokens=limit)

        jobs = list(zip(self._prompts(table), table["steering"], strict=True))
        return self._measured(name, jobs, write, settings)

    def kl(self, name: str, table: pd.DataFrame, settings: dict) -> list[float]:
        """KL(changed || plain) of the next token in nats, mean over the tokens of the neutral answer."""

        def measure(jobs: list[tuple]) -> list[float]:
            prompts, texts, others, steerings = map(list, zip(*jobs, strict=True))
            found = next_token_kl(self.model, prompts, texts, other_prompts=others, steering=steerings)
            return [float(np.nanmean(x)) for x in found]

        plain = [self.answers[q, NEUTRAL] for q in table["query_id"]]
        jobs = list(zip(*zip(*plain, strict=True), self._prompts(table), table["steering"], strict=True))
        return self._measured(name, jobs, measure, settings)

    def logodds(self, name: str, table: pd.DataFrame, settings: dict) -> Float[np.ndarray, " row"]:
        """Mean log-probability of a token of the answer under the row's `target`, less that of the neutral answer."""

        def measure(jobs: list[tuple]) -> list[float]:
            prompts, texts, steerings = map(list, zip(*jobs, strict=True))
            return [float(np.nanmean(x)) for x in token_logprobs(self.model, prompts, texts, steering=steerings)]

        rows = zip(table["query_id"], table["target"], self._prompts(table), table["steering"], strict=True)
        jobs = [(prompt, self.answers[q, c][1], s) for q, target, prompt, s in rows for c in (target, NEUTRAL)]
        found = np.array(self._measured(name, jobs, measure, settings)).reshape(-1, 2)
        return found[:, 0] - found[:, 1]

    def _prompts(self, table: pd.DataFrame) -> list[str]:
        """The plain prompt of each row; the instructed one where `control` is "prompt"."""
        told = table["emotion"].where(table["control"] == "prompt", NEUTRAL) if "emotion" in table else NEUTRAL
        return [self.answers[key][0] for key in zip(table["query_id"], np.broadcast_to(told, len(table)), strict=True)]

    def _measured(self, name: str, jobs: list[tuple], measure: Callable[[list[tuple]], list], settings: dict) -> list:
        """`measure` of every job; equal jobs once, chunk by chunk, continued from the file of that name."""
        unique, path = list(dict.fromkeys(jobs)), self.path(name)
        done = read_table(path, settings)
        found = {} if done is None else dict(zip(done["job"], done["value"], strict=True))
        with progress_bar(name.replace("_", " "), len(unique)) as bar:
            for start in range(0, len(unique), _CHUNK):
                chunk = range(start, min(start + _CHUNK, len(unique)))
                todo = [i for i in chunk if i not in found]
                if todo:
                    found |= dict(zip(todo, measure([unique[i] for i in todo]), strict=True))
                    write_table(pd.DataFrame({"job": list(found), "value": list(found.values())}), path, settings)
                bar.update(len(chunk))
        place = {job: i for i, job in enumerate(unique)}
        return [found[place[job]] for job in jobs]


def _shared_like(vectors: EmotionVectors, used: EmotionVectors) -> EmotionVectors:
    """The base as the vector of every emotion, with the norm of `used` at every layer (and head)."""
    data = {}
    for site, x in used.data.items():
        base = torch.nn.functional.normalize(vectors.part("shared").data[site].double(), dim=-1)
        data[site] = base * x.double().norm(dim=-1, keepdim=True)
    return replace(used, data=data, meta={**used.meta, "control": "shared"})
