"""The numbers of `summary.json` that come from scored tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.base.labels import NEUTRAL
from emolab.base.stats import clusters_of, interval
from emolab.base.storage import for_json
from emolab.experiments.dose_response import collapse, dose_table, trend
from emolab.experiments.sweeps import sweep
from emolab.judges.scoring import score, target_share
from emolab.models.model import Model
from emolab.steering.settings import Setting
from emolab.steering.steering import at
from emolab.vectors.vectors import EmotionVectors


def summarise(
    scored: pd.DataFrame, answers: pd.DataFrame, emotions: Sequence[str], best: dict[str, float], judges: Sequence[Any]
) -> dict:
    """What the judges say of steered texts and of answers under instruction, at the frozen doses and over all doses.

    scored: of a sweep with one setting. answers: scored responses, `emotion` being what the model was told. best: the
    frozen dose of each emotion. Shares and ratios are rounded to four places; None is what does not exist.
    """
    told = {e: answers[answers["condition"] == e] for e in emotions}
    plain = answers[answers["condition"] == NEUTRAL]
    rises = trend(scored)
    summary = {
        "instruction_following": {e: target_share(rows) for e, rows in told.items()},
        "neutral_share": target_share(plain),
        "steering": {e: _at_dose(scored, told[e], e, best[e]) for e in emotions},
        "dose_response": doses(scored, answers),
        "trend": rises[rises["control"] == "none"].drop(columns="control").set_index("emotion").to_dict("index"),
        "collapse": collapse(scored, answers).set_index("emotion").to_dict("index"),
    }
    for judge in judges[1:]:
        top = f"{judge.name}_top"
        summary[judge.name] = {
            "neutral_share": target_share(plain, top),
            "instruction_following": {e: target_share(rows, top) for e, rows in told.items()},
            "target_share": {e: target_share(cell(scored, e, best[e]), top) for e in emotions},
        }
    return for_json(summary, decimals=4)


def doses(scored: pd.DataFrame, answers: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """{emotion: {alpha: {target, lo, hi, random_hi, shuffled, adherence, perplexity_ratio, ...}}} of `dose_table`."""
    columns = {"target": ("value", "none", "target"), "lo": ("lo", "none", "target"), "hi": ("hi", "none", "target")}
    columns |= {"random": ("value", "random", "target"), "random_hi": ("hi", "random", "target")}
    columns["shuffled"] = ("value", "shuffled", "target")
    columns |= {name: ("value", "none", name) for name in ("p_target", "adherence", "perplexity_ratio", "overall")}
    columns["n"] = ("n", "none", "target")
    table = dose_table(scored, answers).pivot(
        index=["emotion", "alpha"], columns=["control", "measure"], values=["value", "lo", "hi", "n"]
    )
    table = table.reindex(columns=pd.MultiIndex.from_tuples(columns.values())).set_axis(list(columns), axis="columns")
    steered = table.index.get_level_values("alpha") != 0
    for control, plain in (("random", "target"), ("shuffled", "target"), ("random_hi", "hi")):
        table[control] = table[control].where(steered, table[plain])  # unsteered text is where every control starts
    table["n"] = table["n"].fillna(0).astype(int)
    cells: dict[str, dict] = {}
    for (emotion, alpha), cell in zip(table.index, table.to_dict("records"), strict=True):
        cells.setdefault(emotion, {})[f"{alpha:g}"] = cell
    return cells


def turned(
    model: Model,
    vectors: EmotionVectors,
    queries: pd.DataFrame,
    setting: Setting,
    best: dict[str, float],
    judge: Any,
    out: Path,
    max_new_tokens: int,
) -> dict[str, dict[str, float | int | None]]:
    """Questions that evoke another emotion than the one steered to: which of the two do the answers show?

    By emotion steered to: `target` and `own`, the shares of answers with the steered emotion and with the question's
    own on top, at the frozen dose; `target_unsteered`, `own_unsteered`, `target_random` beside them; n answers. An
    emotion for which every question is its own is left out.
    """
    evoked = queries.set_index("query_id")["emotion"]
    anywhere = at(vectors, emotions=[next(iter(best))])  # any one: dose 0
    plain = sweep(
        model, anywhere, queries, alphas=(0.0,), controls=(), out=out / "unsteered", max_new_tokens=max_new_tokens
    )
    plain = score(plain, judges=judge)
    found = {}
    for number, (emotion, alpha) in enumerate(best.items()):
        asked = queries[queries["emotion"] != emotion]
        if not len(asked):
            continue
        table = sweep(
            model,
            at(vectors, setting, [emotion]),
            asked,
            alphas=(alpha,),
            controls=("random",),
            out=out / str(number),
            max_new_tokens=max_new_tokens,
        )
        table = score(table, judges=judge)
        steered, random = (table[table["control"] == control] for control in ("none", "random"))
        unsteered = plain[plain["query_id"].isin(asked["query_id"])]
        found[emotion] = {
            "target": (steered["top"] == emotion).mean(),
            "own": (steered["top"] == steered["query_id"].map(evoked)).mean(),
            "target_unsteered": (unsteered["top"] == emotion).mean(),
            "own_unsteered": (unsteered["top"] == unsteered["query_id"].map(evoked)).mean(),
            "target_random": (random["top"] == emotion).mean(),
            "n": len(steered),
        }
    return for_json(found, decimals=4)


def cell(scored: pd.DataFrame, emotion: str, alpha: float, control: str = "none") -> pd.DataFrame:
    """The rows of one emotion, dose and control."""
    return scored[(scored["emotion"] == emotion) & (scored["alpha"] == alpha) & (scored["control"] == control)]


def _at_dose(scored: pd.DataFrame, instructed: pd.DataFrame, emotion: str, alpha: float) -> dict:
    steered, plain = cell(scored, emotion, alpha), cell(scored, emotion, 0.0)
    hits = (steered["top"] == emotion).groupby(steered["query_id"]).mean()
    clusters = clusters_of(steered).loc[hits.index].to_numpy()
    perplexities = [table["perplexity_instructed"].median() for table in (steered, instructed)]
    return {
        "best_alpha": alpha,
        "target_share": target_share(steered),
        "target_interval": interval(hits, clusters=clusters),
        "unsteered_share": target_share(plain),
        "random_share": target_share(cell(scored, emotion, alpha, "random")),
        "shuffled_share": target_share(cell(scored, emotion, alpha, "shuffled")),
        "adherence_ratio": _ratio(steered["adherence"].mean(), plain["adherence"].mean()),
        "perplexity_ratio": _ratio(*perplexities),
        "repetition": steered["repetition"].mean(),
        "named_share": steered["named"].mean(),
        "named_share_instructed": instructed["named"].mean(),
        "refusal_share": steered["refusal"].mean(),
        "refusal_share_unsteered": plain["refusal"].mean(),
        "n": len(steered),
    }


def _ratio(value: float, reference: float) -> float:
    return float(value) / float(reference) if reference else float("nan")
