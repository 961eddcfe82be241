"""Experiments: steer a grid of doses, settings and mixtures beside its controls.

>>> import emolab
>>> table = emolab.sweep(model, vectors, queries, alphas=(0, 1, 2), controls=("random", "shuffled"))
>>> table = emolab.score(table, model=model)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.answers.generation import generate
from emolab.answers.queries import query_table
from emolab.answers.writing import Writing, need_writing
from emolab.base.errors import EmolabError, need_model, need_number, need_numbers, need_vectors
from emolab.base.folders import alone
from emolab.base.labels import NEUTRAL
from emolab.base.progress import written_bar
from emolab.base.storage import digest, read_table, user_path, write_table
from emolab.models.model import Model
from emolab.models.prompts import render_prompts
from emolab.models.workers import on_cluster, run_chunks
from emolab.steering.settings import FIELDS, Setting, combinations, described, mixtures, spoken
from emolab.steering.steering import Steering, match_steering_norm
from emolab.vectors.controls import match_summed_norm, other_like, random_like, shuffled_like
from emolab.vectors.vectors import EmotionVectors

ALPHAS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
CONTROLS = ("random", "shuffled", "other", "prompt")
RANDOM_DIRECTIONS = 3  # different random (or shuffled) vectors, taken in turn by the queries
COLUMNS = ("query_id", "query", "emotion", "situation", "alpha", *FIELDS, "control", "seed", "text")
_CHUNK = 256


@alone
def sweep(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame | Sequence[str] | str,
    *,
    alphas: Sequence[float] = ALPHAS,
    emotions: Sequence[str | Mapping[str, float]] | None = None,
    controls: Sequence[str] = ("random", "shuffled"),
    grid: Mapping[str, Any] | None = None,
    templates: dict[str, str] | None = None,
    out: str | Path | None = None,
    max_new_tokens: int = 80,
    writing: Writing = Writing(),
    seed: int = 0,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Steer every query with every emotion at every dose, and with controls of equal norm.

    >>> table = emolab.sweep(model, vectors, queries, alphas=(0, 1, 2), grid={"site": ["resid", "attn"]})
    >>> table = emolab.sweep(model, vectors, queries, alphas=(0, 4), grid={"layers": "each"})
    >>> table = emolab.sweep(model, vectors, queries, emotions=["joy", {"anger": 0.5, "joy": 0.5}])

    Args:
        alphas: doses (`Steering`); 0 is unsteered (but with op "clamp"), generated once per query and repeated for
            every emotion.
        emotions: names or mixtures {emotion: weight}, whose weights the dose multiplies; default all of the vectors'.
        controls: any of "random" (Gaussian directions), "shuffled" (vectors from shuffled labels) and "other" (the
            vectors of other emotions; the base has none), all with the norm of the vector at every layer and taken in
            turn by the queries, three random and three shuffled ones; and "prompt" (unsteered, but instructed).
        grid: values for the fields site, layers, part, op, unit, positions, heads and fade of `Steering`, as in
            scikit-learn's ParameterGrid; every combination is run. layers may be "each" (every single layer) or
            "thirds" (early, middle, late), heads "each" (every single one; heads count for site "head" alone).
            Default: the residual stream of all layers, whole vectors, added.
        templates: wording of the prompts, as in `collect_responses`; "neutral" for all but control "prompt".
        out: a folder; `sweep.parquet` in it is written after every chunk (atomically), and the same call continues it.
        writing: how each token is chosen (`emolab.Writing`), the same for all rows and kept beside the texts.
        seed: of the random and shuffled vectors; that of sampling is `writing.seed`.

    Returns:
        One row a text: `query_id, query, emotion, situation, alpha, site, layers, part, op, unit, positions, heads,
        fade, control, seed, text`. Control "none" is the emotion vector itself; a mixture's `emotion` reads
        "0.5 anger + 0.5 joy" (`grid.parse_mixture`), and settings as `grid.described` says. `seed` is the control's (of
        "other" the place of that emotion among the vectors'), -1 where there is none. "prompt" has alpha 0.

    Raises:
        EmolabError: unknown control or field, shuffled labels without response means, no other emotion left, `out` of
            another sweep, and as `Steering`.
    """
    need_model(model)
    need_vectors(vectors)
    need_number("seed", seed, whole=True)
    need_writing(writing)
    queries = query_table(queries)
    blends = mixtures(emotions, vectors.emotions)
    alphas = need_numbers("alphas", alphas)
    controls = [controls] if isinstance(controls, str) else list(controls or ())
    unknown = [c for c in controls if c not in CONTROLS]
    if unknown or not blends:
        what = f"unknown control {unknown[0]!r}" if unknown else "no emotion"
        raise EmolabError(f"{what}; controls are {', '.join(CONTROLS)}, and a sweep needs at least one emotion")
    rows, steerings, conditions = [], [], []
    controls = [c for c in CONTROLS if c in controls]
    sources = _Sources(model, vectors, seed)
    for setting in combinations(grid, model.n_layers, model.n_heads):
        made: dict[tuple, list[tuple[int, Steering | None]]] = {}
        told = described(Setting(**setting), model.n_layers)
        for emotion, weights, control, alpha in _cells(blends, controls, alphas, setting):
            # The base is the same for every emotion: its texts are made once.
            doses = {"shared": sum(weights.values())} if setting["part"] == "shared" else weights
            key = (control, alpha, *doses.items())
            if key not in made:
                made[key] = sources.steerings(control, doses, alpha, setting)
            for i, query in enumerate(queries.to_dict("records")):
                control_seed, steering = made[key][i % len(made[key])]
                rows.append(_row(query, emotion, alpha, told, control, control_seed))
                steerings.append(steering)
                conditions.append(spoken(emotion) if control == "prompt" else NEUTRAL)
    table = pd.DataFrame(rows, columns=[c for c in COLUMNS if c != "text"])
    settings = {"model": model.name, "fingerprint": model.fingerprint, "max_new_tokens": max_new_tokens, "seed": seed}
    settings["writing"] = writing.settings(batch_size)
    prompts = _prompts(model, list(table["query"]), conditions, templates)
    settings |= {"vectors": vectors_identity(vectors), "prompts": digest(list(dict.fromkeys(prompts)))}
    settings["rows"] = digest(table.astype(str).to_numpy().ravel().tolist())
    # What the doses are worth; where other settings break does not matter here.
    used = {s.breaking_key for s in steerings if s is not None and s.unit == "breaking"}
    if used:
        settings["breaking"] = digest([str({k: v for k, v in vectors.meta["breaking"].items() if k in used})])
    path = None if out is None else user_path(out) / "sweep.parquet"
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "writing": writing}
    texts = _texts(model, prompts, steerings, list(table["emotion"]), path, settings, options)
    table = table.assign(text=texts)
    return write_table(table, path, settings)


def _cells(
    blends: dict[str, dict[str, float]], controls, alphas, setting
) -> Iterator[tuple[str, dict[str, float], str, float]]:
    """(emotion, weights, control, alpha) of a setting: what is unsteered has no controls, the prompt no dose."""
    for (emotion, weights), control in product(blends.items(), ("none", *controls)):
        if control == "prompt" and spoken(emotion):
            yield emotion, weights, control, 0.0
        elif control != "prompt" and not (control == "other" and setting["part"] == "shared"):
            for alpha in dict.fromkeys(alphas):
                if control == "none" or _steers(alpha, setting):
                    yield emotion, weights, control, float(alpha)


def _steers(alpha: float, setting: dict) -> bool:
    return alpha != 0 or setting["op"] == "clamp"  # a component held at 0 is an edit


class _Sources:
    """Steerings with the vectors and with their controls, which are made once for all settings."""

    def __init__(self, model: Model, vectors: EmotionVectors, seed: int) -> None:
        self.model, self.vectors, self.seed = model, vectors, seed
        self._made: dict[tuple, Any] = {}

    def steerings(
        self, control: str, doses: dict[str, float], alpha: float, setting: dict
    ) -> list[tuple[int, Steering | None]]:
        """(seed, steering) of each variant; one alone, with seed -1, where there is no control vector."""
        own = Steering(self.vectors, {e: alpha * weight for e, weight in doses.items()}, **setting)
        if control == "prompt" or not _steers(alpha, setting):
            return [(-1, None)]
        if control == "none":
            return [(-1, own)]
        key, found = (control, setting["part"], *(doses if control == "other" else ())), []
        if key not in self._made:
            self._made[key] = self._controls(control, tuple(doses), setting["part"])
        for seed, source in self._made[key]:
            if setting["site"] == "head":
                source = match_summed_norm(source, self._part(setting["part"]), setting["heads"])
            # They are of that part already, and as long as the vectors, whose breaking alphas so hold for them, too.
            unit = "vector" if setting["unit"] == "breaking" else setting["unit"]
            steering = Steering(source, own.in_vectors(), **{**setting, "part": "whole", "unit": unit})
            mixed = len(doses) > 1 and setting["op"] == "add"
            found.append((seed, match_steering_norm(steering, own) if mixed else steering))
        return found

    def _part(self, part: str) -> EmotionVectors:
        return self.vectors.part(part)

    def _controls(self, control: str, emotions: tuple[str, ...], part: str) -> list[tuple[int, EmotionVectors]]:
        """(seed, vectors) of each variant, made of the part in use, so that norms agree."""
        used, seeds = self._part(part), range(self.seed, self.seed + RANDOM_DIRECTIONS)
        if control == "random":
            return [(seed, random_like(used, seed=seed)) for seed in seeds]
        if control == "shuffled":
            return [(seed, shuffled_like(used, model=self.model, seed=seed)) for seed in seeds]
        return [(used.emotions.index(turn[emotions[0]]), other_like(used, turn)) for turn in _turns(used, emotions)]


def _turns(vectors: EmotionVectors, emotions: tuple[str, ...]) -> list[dict[str, str]]:
    """Which others stand for these emotions: first the next ones in the vectors' order, then the ones after."""
    first = vectors.emotions.index(emotions[0])
    others = [e for e in vectors.emotions[first:] + vectors.emotions[:first] if e not in emotions]
    if len(others) < len(emotions):
        raise EmolabError(
            f'control "other" needs another emotion for each of {", ".join(emotions)}, and these vectors hold only '
            f"{', '.join(vectors.emotions)}; leave it out"
        )
    rounds = [others[i:] + others[:i] for i in range(len(others))]
    return [dict(zip(emotions, turn, strict=False)) for turn in rounds]


def vectors_identity(vectors: EmotionVectors) -> str:
    """What the vectors were made of and what was done to them since; their numbers where that is not known."""
    source = vectors.meta.get("corpus_hash")
    if source is None:
        source = hashlib.sha256(b"".join(x.numpy().tobytes() for x in vectors.data.values())).hexdigest()
    return digest([source, *vectors.meta.get("steps", [])])


def _row(query: dict, emotion: str, alpha: float, setting: dict, control: str, seed: int) -> tuple:
    place = query.get("situation", query["query_id"])
    return (query["query_id"], query["query"], emotion, place, alpha, *setting.values(), control, seed)


def _prompts(model: Model, queries: list[str], conditions: list[str], templates: dict[str, str] | None) -> list[str]:
    """Complete prompts, each rendered once."""
    prompts = {}
    for condition in dict.fromkeys(conditions):
        asked = list(dict.fromkeys(q for q, c in zip(queries, conditions, strict=True) if c == condition))
        rendered = render_prompts(model, asked, condition, templates=templates)
        prompts |= {(query, condition): prompt for query, prompt in zip(asked, rendered, strict=True)}
    return [prompts[pair] for pair in zip(queries, conditions, strict=True)]


def _texts(model, prompts, steerings, emotions, path, settings, options) -> list[str]:
    """Texts of all rows; equal (prompt, steering) once; continued from `path` where it holds the same sweep."""
    jobs: dict[tuple[str, int], int] = {}
    place = [jobs.setdefault((p, id(s)), i) for i, (p, s) in enumerate(zip(prompts, steerings, strict=True))]
    done = read_table(path, settings)
    texts = dict(zip(done["row"], done["text"], strict=True)) if done is not None and "row" in done else {}
    if done is not None and "row" not in done:
        return list(done["text"])
    rows = list(jobs.values())
    different = {id(s): s for s in steerings}
    number = {key: k for k, key in enumerate(different)}
    chunks, todo = [], []
    for k, start in enumerate(range(0, len(rows), _CHUNK)):
        chunk = [i for i in rows[start : start + _CHUNK] if i not in texts]
        if chunk:
            chunks.append(chunk)
            chosen = options | {"writing": options["writing"].chunk(k)}
            todo.append(([prompts[i] for i in chunk], [number[id(steerings[i])] for i in chunk], chosen))
    shared = _light(list(different.values())) if on_cluster() else list(different.values())
    names = [f"sweep-{emotions[chunk[0]]}" for chunk in chunks]
    with written_bar("sweep", len(rows), len(texts)) as bar:
        for found in run_chunks(model, _written, todo, shared=shared, name=names):
            for k, written in found.items():
                texts |= dict(zip(chunks[k], written, strict=True))
            write_table(pd.DataFrame({"row": list(texts), "text": list(texts.values())}), path, settings)
            bar.reach(len(texts))
    return [texts[i] for i in place]


def _written(model: Model, steerings: list, prompts: list[str], rows: list[int], options: dict) -> list[str]:
    return generate(model, prompts, steering=[steerings[k] for k in rows], raw=True, **options)


def _light(steerings: list[Steering | None]) -> list[Steering | None]:
    """The same, their vectors without what they do not use: these travel to every worker."""
    sites: dict[int, set[str]] = {}
    vectors = {id(s.vectors): s.vectors for s in steerings if s is not None}
    for s in steerings:
        if s is not None:
            sites.setdefault(id(s.vectors), set()).add(s.site)
    light = {
        key: replace(v, data={site: v.data[site] for site in sites[key]}, means=None) for key, v in vectors.items()
    }
    return [s if s is None else replace(s, vectors=light[id(s.vectors)]) for s in steerings]
