"""Experiments: steer with directions at many doses, beside their controls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.answers.jobs import Store, prompts_of, write_texts
from emolab.answers.queries import query_table
from emolab.answers.writing import Writing, need_writing
from emolab.base.calls import once
from emolab.base.errors import EmolabError, need_model, need_numbers, shown
from emolab.base.folders import alone
from emolab.base.labels import NEUTRAL
from emolab.base.storage import digest, user_path, write_table
from emolab.models.model import Model
from emolab.steering.settings import FIELDS, HELD, described, mixture_name, need_one_of, spoken
from emolab.steering.steering import Steering, at, match_steering_norm
from emolab.vectors.controls import DRAWN, drawn_like, match_summed_norm, other_like
from emolab.vectors.vectors import EmotionVectors

ALPHAS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
CONTROLS = ("random", "shuffled", "other", "prompt")
# "when" only where a direction has a condition.
COLUMNS = ("query_id", "query", "emotion", "situation", "alpha", *FIELDS, "control", "seed", "text")
_CHUNK = 256


@alone
def sweep(
    model: Model,
    vectors: EmotionVectors | Steering | Sequence[Steering],
    queries: pd.DataFrame | Sequence[str] | str,
    *,
    alphas: Sequence[float] = ALPHAS,
    controls: Sequence[str] = ("random", "shuffled"),
    out: str | Path | None = None,
    max_new_tokens: int = 80,
    writing: Writing = Writing(),
) -> pd.DataFrame:
    """Steer every query with every direction at every dose, and with controls of equal norm.

    >>> table = emolab.sweep(model, vectors, queries, alphas=(0, 1, 2), controls=("random", "shuffled"))
    >>> table = emolab.score(table, model=model)
    >>> late = emolab.Setting(site="attn", layers="late")
    >>> table = emolab.sweep(model, emolab.at(vectors, late), queries, alphas=(0, 1))
    >>> layers = emolab.steering.each_layer(vectors)
    >>> table = emolab.sweep(model, emolab.at(vectors, layers, ["joy"]), queries, alphas=(0, 4))
    >>> table = emolab.sweep(model, emolab.Steering(vectors, {"anger": 0.5, "joy": 0.5}), queries)

    Args:
        vectors: the directions. Each is one `Steering`, of an emotion or a mixture at one setting; the alphas multiply
            its doses. `emolab.at` makes them; EmotionVectors alone are each of their emotions, in the residual stream
            of all layers.
        alphas: doses; 0 is unsteered (but with op "clamp" and "cap"), generated once per query and repeated for every
            direction.
        controls: any of "random" (Gaussian directions), "shuffled" (vectors from shuffled labels) and "other" (the
            vectors of other emotions; the shared part has none), all with the norm of the vector at every layer and
            taken in turn by the queries, three random and three shuffled ones; and "prompt" (unsteered, but
            instructed).
        out: a folder; `sweep.parquet` in it is written after every chunk, and the same call continues it.
        writing: how each token is chosen (`emolab.Writing`), the same for all rows and kept beside the texts; its seed
            is also that of the random and shuffled vectors, its `templates` the wording of the prompts, "neutral" for
            all but control "prompt".

    Returns:
        One row a text: `query_id, query, emotion, situation, alpha, site, layers, part, op, unit, positions, heads,
        fade, control, seed, text`, with `when` before control where a direction has a condition. Control "none" is the
        direction itself; a mixture's `emotion` reads "0.5 anger + 0.5 joy" (`parse_mixture`), and settings as
        `described` says. `seed` is the control's (of "other" the place of that emotion among the vectors'), -1 where
        there is none. "prompt" has alpha 0.

    Raises:
        EmolabError: no direction, two that the table could not tell apart, an unknown control, shuffled labels without
            response means, no other emotion left, `out` of another sweep, and as `Steering`.
    """
    need_model(model)
    need_writing(writing)
    queries, directions = query_table(queries), directions_of(vectors)
    table, steerings, conditions = planned(model, directions, queries, alphas, controls, seed=writing.seed)
    prompts = prompts_of(model, list(table["query"]), conditions, writing)
    settings = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "max_new_tokens": max_new_tokens,
        "seed": writing.seed,
        "writing": writing.settings(),
        "vectors": identity(directions),
        "prompts": digest(list(dict.fromkeys(prompts))),
        "rows": digest(table.astype(str).to_numpy().ravel().tolist()),
    }
    breaking = _breaking(directions)
    if breaking:
        settings["breaking"] = digest(breaking)
    store = Store(None if out is None else user_path(out) / "sweep.parquet", settings)
    finished = store.finished()
    if finished is not None:
        return finished
    # Unsteered texts, and those of the part that all emotions share, are written once.
    texts = once(
        list(zip(prompts, steerings, strict=True)),
        lambda jobs: write_texts(
            model,
            [prompt for prompt, _ in jobs],
            [steering for _, steering in jobs],
            chunk=_CHUNK,
            max_new_tokens=max_new_tokens,
            writing=writing,
            name="sweep",
            store=store,
        ),
    )
    return write_table(table.assign(text=texts), store.path, settings)


def planned(
    model: Model,
    directions: list[Steering],
    queries: pd.DataFrame,
    alphas: Sequence[float],
    controls: Sequence[str],
    *,
    seed: int,
    draws: int | None = None,
) -> tuple[pd.DataFrame, list[Steering | None], list[str]]:
    """The rows of a sweep without their texts, the steering of each, and its condition.

    >>> table, steerings, conditions = planned(model, emolab.at(vectors), queries, (0, 1), ["random"], seed=0)

    draws: each query with so many draws of a control; None, as in a sweep, whose texts are dear: with one, in turn.
    """
    alphas = need_numbers("alphas", alphas)
    controls = _known_controls(controls)
    variants = _Variants(model, seed, draws or DRAWN)
    rows, steerings, conditions = [], [], []
    for direction in directions:
        emotion = mixture_name(direction.doses)
        setting = described(direction.setting, direction.vectors.n_layers)
        for control, alpha in _cells(direction, controls, alphas):
            made = variants.of(direction, control, alpha)
            for i, query in enumerate(queries.to_dict("records")):
                asked = (query["query_id"], query["query"], emotion, query.get("situation", query["query_id"]))
                for number, steering in made if draws else [made[i % len(made)]]:
                    rows.append((*asked, alpha, *setting.values(), control, number))
                    steerings.append(steering)
                    conditions.append(spoken(emotion) if control == "prompt" else NEUTRAL)
    table = pd.DataFrame(rows, columns=[column for column in COLUMNS if column != "text"])
    return table if table["when"].any() else table.drop(columns="when"), steerings, conditions


def directions_of(vectors: Any) -> list[Steering]:
    """One steering for each emotion or mixture and setting; equal ones once."""
    if isinstance(vectors, EmotionVectors):
        return at(vectors)
    directions = [vectors] if isinstance(vectors, Steering) else vectors
    if not isinstance(directions, list | tuple) or not all(isinstance(one, Steering) for one in directions):
        raise EmolabError(
            f"vectors are {shown(vectors)}; expected EmotionVectors, a Steering or a list of these, as emolab.at gives"
        )
    if not directions:
        raise EmolabError("a sweep needs at least one direction; give emolab.at(vectors, setting, emotions)")
    different: dict[tuple, Steering] = {}
    for one in directions:
        name = (mixture_name(one.doses), *described(one.setting, one.vectors.n_layers).values())
        same = different.setdefault(name, one)
        if same.vectors is not one.vectors or (one.when and same.when and same.when.vectors is not one.when.vectors):
            raise EmolabError(
                f"two different vectors are called {name[0]!r} at one setting, and the table could not tell them "
                "apart; sweep them one after the other"
            )
    return list(different.values())


def _known_controls(controls: Any) -> list[str]:
    """In the order of `CONTROLS`."""
    controls = [controls] if isinstance(controls, str) else list(controls or ())
    for control in controls:
        need_one_of("control", control, CONTROLS)
    return [control for control in CONTROLS if control in controls]


def _cells(direction: Steering, controls: list[str], alphas: list[float]) -> Iterator[tuple[str, float]]:
    """(control, alpha) of a direction: what is unsteered has no controls, the prompt no dose."""
    for control in ("none", *controls):
        if control == "prompt":
            if spoken(mixture_name(direction.doses)):
                yield control, 0.0
        elif control != "other" or direction.part != "shared":
            for alpha in dict.fromkeys(alphas):
                if control == "none" or _steers(alpha, direction):
                    yield control, alpha


def _steers(alpha: float, direction: Steering) -> bool:
    return alpha != 0 or direction.op in HELD


class _Variants:
    """Steerings with directions and with their controls, which are made once for all settings."""

    def __init__(self, model: Model, seed: int, draws: int) -> None:
        self.model, self.seed, self.draws = model, seed, draws
        self._drawn: dict[tuple, dict[int, EmotionVectors]] = {}
        self._shared: dict[tuple, list[tuple[int, Steering | None]]] = {}

    def of(self, direction: Steering, control: str, alpha: float) -> list[tuple[int, Steering | None]]:
        """(seed, steering) of each variant; one alone, with seed -1, where there is no control vector."""
        if control == "prompt" or not _steers(alpha, direction):
            return [(-1, None)]
        doses = {emotion: alpha * weight for emotion, weight in direction.doses.items()}
        own = replace(direction, doses=doses)
        if direction.part != "shared":
            return self._made(own, control)
        # The same for every emotion: its texts are written once.
        setting = described(own.setting, own.vectors.n_layers)
        key = (id(own.vectors), control, sum(doses.values()), *setting.values())
        if key not in self._shared:
            self._shared[key] = self._made(own, control)
        return self._shared[key]

    def _made(self, own: Steering, control: str) -> list[tuple[int, Steering | None]]:
        if control == "none":
            return [(-1, own)]
        used = own.vectors.part(own.part)
        doses = own.in_vectors()
        # They are of that part already, and as long as the vectors, whose breaking alphas so hold for them, too.
        unit = "vector" if own.unit == "breaking" else own.unit
        made = []
        for seed, source in self._controls(own, used, control).items():
            if own.site == "head":
                source = match_summed_norm(source, used, own.heads)
            steering = replace(own, vectors=source, doses=doses, part="whole", unit=unit)
            mixed = len(doses) > 1 and own.op in ("add", "rotate")
            made.append((seed, match_steering_norm(steering, own) if mixed else steering))
        return made

    def _controls(self, own: Steering, used: EmotionVectors, control: str) -> dict[int, EmotionVectors]:
        """{seed: vectors} of each variant, made of the part in use, so that norms agree."""
        emotions = tuple(own.doses)
        key = (id(own.vectors), own.part, control, *(emotions if control == "other" else ()))
        if key not in self._drawn:
            if control == "other":
                turns = _turns(used, emotions)
                drawn = {used.emotions.index(turn[emotions[0]]): other_like(used, turn) for turn in turns}
            else:
                drawn = drawn_like(used, control, model=self.model, seed=self.seed, n=self.draws)
            self._drawn[key] = drawn
        return self._drawn[key]


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


def identity(directions: list[Steering]) -> str:
    """What tells the vectors of these directions apart from all others."""
    used = [x for d in directions for x in (d.vectors, *([d.when.vectors] if d.when else []))]
    sources = [vectors_identity(vectors) for vectors in {id(vectors): vectors for vectors in used}.values()]
    return sources[0] if len(sources) == 1 else digest(sources)


def _breaking(directions: list[Steering]) -> list[str]:
    """What the doses are worth; where other settings break does not matter here."""
    keys: dict[int, set[str]] = {}
    for direction in directions:
        if direction.unit == "breaking":
            keys.setdefault(id(direction.vectors), set()).add(direction.breaking_key)
    vectors = {id(direction.vectors): direction.vectors for direction in directions}
    known = {number: vectors[number].meta["breaking"] for number in keys}
    return [str({key: known[number][key] for key in known[number] if key in used}) for number, used in keys.items()]
