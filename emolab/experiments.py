"""Experiments: steer a grid of doses beside its controls, and the whole study that `emolab study` runs.

>>> import emolab
>>> table = emolab.sweep(model, vectors, queries, alphas=(0, 1, 2), controls=("random", "shuffled"))
>>> table = emolab.score(table, model=model)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from emolab.controls import as_strong, random_like, shuffled_like
from emolab.errors import EmolabError
from emolab.generation import generate
from emolab.models import Model
from emolab.queries import load_queries
from emolab.steering import Steering
from emolab.storage import digest, read_table, write_table
from emolab.vectors import EmotionVectors

ALPHAS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
CONTROLS = ("random", "shuffled")
RANDOM_DIRECTIONS = 3  # different random (or shuffled) vectors, taken in turn by the queries
COLUMNS = (
    "query_id",
    "query",
    "emotion",
    "situation",
    "alpha",
    "site",
    "layers",
    "part",
    "op",
    "dose",
    "control",
    "seed",
    "text",
)
_FIELDS = {"site": "resid", "layers": "all", "part": "whole", "op": "add", "dose": "vector"}
_CHUNK = 256


def sweep(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame | Sequence[str] | str,
    *,
    alphas: Sequence[float] = ALPHAS,
    emotions: Sequence[str] | None = None,
    controls: Sequence[str] = CONTROLS,
    grid: Mapping[str, Sequence[Any]] | None = None,
    out: str | Path | None = None,
    max_new_tokens: int = 80,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Steer every query with every emotion at every dose, and with controls of equal norm; greedy text.

    >>> table = emolab.sweep(model, vectors, queries, alphas=(0, 1, 2), grid={"site": ["resid", "attn"]})

    Args:
        alphas: doses (`Steering`); 0 is unsteered (but with op "clamp"), generated once per query and repeated for
            every emotion.
        emotions: default all of the vectors'.
        controls: any of "random" (Gaussian directions) and "shuffled" (vectors from shuffled labels), with the norm
            of the vector at every layer. Three of each, taken in turn by the queries.
        grid: values for the fields site, layers, part, op and dose of `Steering`, as in scikit-learn's ParameterGrid;
            every combination is run. Default: the residual stream of all layers, whole vectors, added.
        out: a folder; `sweep.parquet` in it is written after every chunk (atomically), and the same call continues it.

    Returns:
        One row a text: `query_id, query, emotion, situation, alpha, site, layers, part, op, dose, control, seed, text`.
        Control "none" is the emotion vector itself; `seed` is the control's, -1 where there is none.

    Raises:
        EmolabError: unknown control or field, shuffled labels without response means, `out` of another sweep, and as
            `Steering`.
    """
    if not isinstance(queries, pd.DataFrame):
        queries = load_queries(queries)
    emotions = vectors.emotions if emotions is None else [emotions] if isinstance(emotions, str) else emotions
    unknown = [c for c in controls if c not in CONTROLS]
    missing = [c for c in ("query_id", "query") if c not in queries]
    if unknown or missing or not len(queries) or not len(alphas) or not len(emotions):
        what = f"unknown control {unknown[0]!r}" if unknown else "no query, no dose or no emotion"
        what = f"queries lack {', '.join(missing)}" if missing else what
        raise EmolabError(
            f"{what}; controls are {', '.join(CONTROLS)}, and a sweep needs at least one query (of load_queries), "
            "one alpha and one emotion"
        )
    settings_list = _combinations(grid)
    rows, steerings = [], []
    for setting in settings_list:
        sources, made = _sources(model, vectors, setting, controls, seed), {}
        for emotion, (control, variants), alpha in product(emotions, sources.items(), dict.fromkeys(alphas)):
            unsteered = alpha == 0 and setting["op"] != "clamp"  # a component held at 0 is an edit
            if unsteered and control != "none":
                continue
            label = "base" if setting["part"] == "base" else emotion
            if (control, label, alpha) not in made:  # the base is the same for every emotion: its texts are made once
                made[control, label, alpha] = [_steering(s, label, alpha, setting, control) for _, s in variants]
            for i, query in enumerate(queries.to_dict("records")):
                k = i % len(variants)
                rows.append(_row(query, emotion, alpha, setting, control, variants[k][0]))
                steerings.append(None if unsteered else made[control, label, alpha][k])
    table = pd.DataFrame(rows, columns=[c for c in COLUMNS if c != "text"])
    settings = {"model": model.name, "fingerprint": model.fingerprint, "max_new_tokens": max_new_tokens, "seed": seed}
    settings |= {
        "vectors": _identity(vectors),
        "rows": digest(table.astype(str).to_numpy().ravel().tolist()),
    }
    path = None if out is None else Path(out) / "sweep.parquet"
    texts = _texts(model, table, steerings, path, settings, max_new_tokens, batch_size, progress)
    table = table.assign(text=texts)
    return write_table(table, path, settings)


def _combinations(grid: Mapping[str, Sequence[Any]] | None) -> list[dict[str, Any]]:
    grid = dict(grid or {})
    unknown = [field for field in grid if field not in _FIELDS]
    if unknown:
        raise EmolabError(f"unknown field {unknown[0]!r} in grid; expected {', '.join(_FIELDS)}")
    grid = {field: [values] if isinstance(values, str) else list(values) for field, values in grid.items()}
    empty = [field for field, values in grid.items() if not values]
    if empty:
        raise EmolabError(f"grid names no value for {empty[0]!r}; leave the field out for its default")
    values = [grid.get(field, [default]) for field, default in _FIELDS.items()]
    return [dict(zip(_FIELDS, combination, strict=True)) for combination in product(*values)]


def _sources(model, vectors, setting, controls, seed) -> dict[str, list[tuple[int | None, EmotionVectors]]]:
    """{control: [(seed, vectors)]}; controls are made of the part in use, so that norms agree."""
    part = {"whole": lambda: vectors, "specific": vectors.specific, "base": vectors.base}
    if setting["part"] not in part:
        raise EmolabError(f"unknown part {setting['part']!r}; expected {', '.join(part)}")
    used = part[setting["part"]]()
    found: dict[str, list] = {"none": [(None, vectors)]}
    seeds = [seed + i for i in range(RANDOM_DIRECTIONS)]
    if "random" in controls:
        found["random"] = [(s, random_like(used, seed=s)) for s in seeds]
    if "shuffled" in controls:
        found["shuffled"] = [(s, shuffled_like(used, model=model, seed=s)) for s in seeds]
    if setting["site"] == "head":
        for control in found.keys() - {"none"}:
            found[control] = [(s, as_strong(source, used)) for s, source in found[control]]
    return found


def _identity(vectors: EmotionVectors) -> str:
    """What the vectors were made of and what was done to them since; their numbers where that is not known."""
    source = vectors.meta.get("corpus_hash")
    if source is None:
        source = hashlib.sha256(b"".join(x.numpy().tobytes() for x in vectors.data.values())).hexdigest()
    return digest([source, *vectors.meta.get("steps", [])])


def _steering(source: EmotionVectors, label: str, alpha: float, setting: dict, control: str) -> Steering:
    fields = {field: value for field, value in setting.items() if field != "part"}
    part = setting["part"] if control == "none" else "whole"  # controls were made of that part already
    return Steering(source, {label: alpha}, part=part, **fields)


def _row(query: dict, emotion: str, alpha: float, setting: dict, control: str, seed: int | None) -> tuple:
    layers = setting["layers"] if isinstance(setting["layers"], str) else ",".join(map(str, setting["layers"]))
    place = query.get("situation", query["query_id"])
    fields = (setting["site"], layers, setting["part"], setting["op"], setting["dose"])
    return (
        query["query_id"],
        query["query"],
        emotion,
        place,
        float(alpha),
        *fields,
        control,
        -1 if seed is None else seed,
    )


def _texts(model, table, steerings, path, settings, max_new_tokens, batch_size, progress) -> list[str]:
    """Texts of all rows; equal (query, steering) once; continued from `path` where it holds the same sweep."""
    jobs: dict[tuple[str, int], int] = {}
    place = [jobs.setdefault((q, id(s)), i) for i, (q, s) in enumerate(zip(table["query"], steerings, strict=True))]
    done = read_table(path, settings)
    texts = dict(zip(done["row"], done["text"], strict=True)) if done is not None and "row" in done else {}
    if done is not None and "row" not in done:
        return list(done["text"])
    chunks = [list(jobs.values())[i : i + _CHUNK] for i in range(0, len(jobs), _CHUNK)]
    with tqdm(total=len(jobs), desc="sweep", unit="text", disable=not progress) as bar:
        for chunk in chunks:
            todo = [i for i in chunk if i not in texts]
            if todo:
                prompts, rows = [table["query"].iloc[i] for i in todo], [steerings[i] for i in todo]
                options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
                texts |= dict(zip(todo, generate(model, prompts, steering=rows, **options), strict=True))
                write_table(pd.DataFrame({"row": list(texts), "text": list(texts.values())}), path, settings)
            bar.update(len(chunk))
    return [texts[i] for i in place]
