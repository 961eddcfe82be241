"""`report.html`: one self-contained page of a run, made from its files alone.

>>> write_report("runs/smollm2")                                      # doctest: +SKIP
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emolab.base.storage import atomic, read_json, user_path
from emolab.base.tables import span
from emolab.plot.save import read_manifest
from emolab.plot.side_by_side import text_table
from emolab.studies.figures import of_run, read_summary, run_table

# What the keys of `summary.json` are called in the tables.
HEADLINE = {
    "emotion": "emotion", "best_alpha": "dose α", "target": "target on top", "random_share": "random direction",
    "shuffled_share": "shuffled labels", "unsteered_share": "unsteered", "instructed": "instructed",
    "adherence_ratio": "adherence / unsteered", "repetition": "repetition", "named_share": "names the emotion",
    "refusal_share": "refuses", "perplexity_ratio": "perplexity / instructed", "alpha_star": "collapse dose α*",
}  # fmt: skip
EVOKING = {
    "emotion": "steered to", "target": "shows the target", "own": "shows the question's own",
    "target_unsteered": "target, unsteered", "own_unsteered": "own, unsteered",
    "target_random": "target, random direction", "n": "answers",
}  # fmt: skip


@of_run
def write_report(out: str | Path) -> Path:
    """Write `out/report.html`, with figures, tables, texts that nobody picked, limits and provenance; returns its path.

    The page needs no other file and no network, and runs no script: whatever a model wrote is shown as text. Raises
    EmolabError where the run is not finished.
    """
    import jinja2

    out = user_path(out)
    summary, figures = read_summary(out), read_manifest(out / "figures")
    scored, answers = run_table(out / "scores.parquet"), out / "instructed_scores.parquet"
    instructed = run_table(answers) if answers.exists() else None  # a sweep that was scored alone has none
    manifest = read_json(out / "manifest.json", f"run `emolab study --out {out}` again")
    loader = jinja2.PackageLoader("emolab.studies", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"cell": _cell, "span": span}
    page = environment.get_template("report.html.j2").render(
        summary=summary,
        headline=_headline(summary),
        evoking=_evoking(summary),
        methods=_methods(summary),
        texts=_texts(scored, instructed, summary),
        figures={name: _figure(out / "figures", entry) for name, entry in figures.items()},
        provenance=json.dumps(manifest, indent=1, ensure_ascii=False),
    )
    with atomic(out / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out / "report.html"


def _figure(folder: Path, entry: Mapping[str, Any]) -> dict[str, str]:
    # As an image, a figure cannot run scripts, and its ids do not meet those of other figures.
    svg = base64.b64encode((folder / entry["files"]["svg"]).read_bytes()).decode()
    return {"source": f"data:image/svg+xml;base64,{svg}", "alt": entry["alt"], "caption": entry["caption"]}


def _headline(summary: Mapping[str, Any]) -> pd.DataFrame:
    rows = [
        {
            **cell,
            "emotion": emotion,
            "target": _interval([cell["target_share"], *cell["target_interval"]]),
            "instructed": summary["instruction_following"][emotion],
            "alpha_star": summary.get("collapse", {}).get(emotion, {}).get("alpha_star"),
        }
        for emotion, cell in summary["steering"].items()
    ]
    return pd.DataFrame(rows, columns=list(HEADLINE)).rename(columns=HEADLINE).astype(object)


def _evoking(summary: Mapping[str, Any]) -> pd.DataFrame | None:
    if not summary.get("evoking"):
        return None
    rows = [{"emotion": emotion, **cell} for emotion, cell in summary["evoking"].items()]
    return pd.DataFrame(rows).rename(columns=EVOKING).astype(object)


def _methods(summary: Mapping[str, Any]) -> pd.DataFrame | None:
    rows = []
    for name, row in (summary.get("baselines") or {}).items():
        best, equal = row.get("best", {}), row.get("equal damage", {})
        cells = {measure: _interval(best.get(measure)) for measure in ("emotion", "adherence", "fluency", "overall")}
        cells["damage (nats)"] = _interval(best.get("damage"))
        cells["overall at equal damage"] = _interval(equal.get("overall"))
        costs = {"set-up (s)": row["seconds"], "speed": row["speed"], "dosed": row["can_dose"], "mixed": row["can_mix"]}
        rows.append({"method": name, **cells, **costs})
    return pd.DataFrame(rows).astype(object) if rows else None


def _interval(found: Sequence[float | None] | None) -> str:
    if not found:
        return "–"
    value, low, high = found
    return _cell(value) if low is None else f"{_cell(value)} ({_cell(low)}\xa0to\xa0{_cell(high)})"  # broken before (


def _texts(scored: pd.DataFrame, instructed: pd.DataFrame | None, summary: Mapping[str, Any]) -> str:
    """One question, drawn by the seed: what every emotion gets at its frozen dose, beside the controls."""
    (query,) = scored["query"].drop_duplicates().sort_values().sample(1, random_state=summary["seed"])
    best = {emotion: cell["best_alpha"] for emotion, cell in summary["steering"].items()}
    return text_table(scored, reference=instructed, query=query, alphas=best or None)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
