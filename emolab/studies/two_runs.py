"""Two runs side by side: the maps of both models, and what steering does in them: `emolab study --compare`.

>>> found = compare_runs("runs/plain", "runs/tuned", out="runs/compared")                   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emolab import plot, say
from emolab.base.errors import EmolabError
from emolab.base.folders import alone
from emolab.base.labels import order
from emolab.base.stats import clusters_of
from emolab.base.storage import user_path, write_parquet
from emolab.base.tables import span
from emolab.experiments.across import model_doses, need_same_questions
from emolab.experiments.headline import sweep_about
from emolab.geometry.across import map_agreement
from emolab.say.sentences import Sentences, listed
from emolab.studies.figures import run_table
from emolab.vectors.vectors import EmotionVectors


@dataclass(frozen=True)
class TwoRuns:
    """What `compare_runs` found: `maps` of `map_agreement`, `doses` of `model_doses`, and `left_out`, in sentences."""

    maps: pd.DataFrame
    doses: pd.DataFrame
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        return str(Sentences(say.two_models(self.maps, self.doses), *self.left_out))


@alone
def compare_runs(first: str | Path, second: str | Path, *, out: str | Path | None = None, seed: int = 0) -> TwoRuns:
    """Two finished runs, of any two models: likeness of their maps, and dose-response in breaking alphas.

    >>> print(compare_runs("runs/plain", "runs/tuned", out="runs/compared"))                 # doctest: +SKIP

    Each folder holds `vectors.safetensors` and `scores.parquet`, as `emolab study` writes them, or `extract`, `sweep`
    and `score`. Models are named as they were loaded, or by their folders where that is the same name. Emotions that
    both have are compared, the others named in `left_out`, and so is what else could not be compared.

    out: a folder, into which `maps.parquet`, `doses.parquet` and `figures/two_models.png` (SVG, PDF, CSV) are written.

    Raises EmolabError, in one line, for a run that lacks a file, for other emotions, doses in another unit or none in
    common, and where one query_id stands for two questions.
    """
    folders = [user_path(first), user_path(second)]
    vectors = [EmotionVectors.load(folder / "vectors.safetensors") for folder in folders]
    for names in (
        [str(one.meta.get("model")) for one in vectors],
        [folder.resolve().name for folder in folders],
        [str(folder) for folder in folders],
    ):
        if names[0] != names[1]:
            break
    else:
        raise EmolabError(f"{first} is given twice; expected the folders of two runs")
    of = dict(zip(names, folders, strict=True))
    scored = {name: run_table(folder / "scores.parquet") for name, folder in of.items()}
    doses = model_doses(scored, seed=seed)
    groups = None
    if all((folder / "responses.parquet").exists() for folder in folders):
        asked = {name: run_table(folder / "responses.parquet") for name, folder in of.items()}
        need_same_questions(asked)
        situations = pd.concat([clusters_of(table) for table in asked.values()])
        groups = situations[~situations.index.duplicated()]
    maps = map_agreement(*vectors, groups=groups, seed=seed)
    maps.attrs["about"]["model"]["name"] = " and ".join(names)
    compared = TwoRuns(maps, doses, tuple(_left_out(names, vectors, scored, maps)))
    if out is not None:
        folder = user_path(out)
        for name, table in {"maps": maps, "doses": doses}.items():
            write_parquet(folder / f"{name}.parquet", table)
        plot.save_figure(
            plot.two_models(maps, doses), "two_models", caption=str(compared), directory=folder / "figures"
        )
    return compared


def _left_out(
    names: list[str], vectors: list[EmotionVectors], scored: dict[str, pd.DataFrame], maps: pd.DataFrame
) -> Iterator[str]:
    """What was not compared, or differs between the runs beside the models, a sentence each."""
    emotions = [order([*one.emotions, *scored[name]["emotion"]]) for name, one in zip(names, vectors, strict=True)]
    for name, own, others in zip(names, emotions, reversed(emotions), strict=True):
        lone = [emotion for emotion in own if emotion not in others]
        if lone:
            yield f"Only {name} has {listed(lone)}; left out."
    for measure, reason in maps.attrs["left_out"].items():
        yield f"{measure.upper() if measure != 'cosine' else 'The cosine'} was left out: {reason}."
    asked = [set(table["query_id"]) for table in scored.values()]
    if not asked[0] & asked[1]:
        yield "The runs steered answers to other questions, so that their difference is not paired."
    if vectors[0].meta.get("template_hash") != vectors[1].meta.get("template_hash"):
        yield "The prompts around the questions, or the wording of the instructions, are not the same in both."
    params = [sweep_about(table)["params"] for table in scored.values()]
    settings = [f"site {one['site']}, layers {span(one['layers'])}, {one['part']} vectors" for one in params]
    if settings[0] != settings[1]:
        yield f"Each was steered in its own setting: {names[0]} at {settings[0]}; {names[1]} at {settings[1]}."
