"""What vectors of three sources do on the default model: the table of docs/results.md and of the README.

    python -m tools.results [--sources frames] [--out runs/results]

About five minutes for each source on two cores; it goes on where it was stopped.

For each source of vectors (the model's own answers, written texts, frames around an emotion word) and each part (whole,
specific): setting and doses are chosen on training questions by a judge that does not see the names of emotions
(`experiments.selection`), and what they do is read on held-out questions that evoke nothing, beside random directions,
shuffled labels and the instruction. Nothing here is drawn at random but the controls, by their seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

import emolab
from emolab import EMOTIONS
from emolab.base.storage import write_json
from emolab.experiments.selection import Round, Search, select, setting_row
from emolab.experiments.wordings import templates_of
from emolab.judges.judges import BlindJudge, EmbeddingJudge
from emolab.judges.scoring import kept_score
from emolab.models.pretrained import fast_bfloat16
from emolab.studies.numbers import summarise, turned
from tools.ship_vectors import WORDING, vectors_from

ROOT = Path(__file__).parent.parent
SOURCES = {"frames": "frames around an emotion word", "answers": "the model's own answers", "topics": "written texts"}
N_CHOOSE, N_REPORT, N_EVOKING, TOKENS = 8, 24, 10, 50


def measure(model: emolab.Model, source: str, part: str, out: Path) -> dict:
    """Choice and report of one source and part, kept in `out/<source>-<part>`."""
    folder = out / f"{source}-{part}"
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    writing = emolab.Writing(templates=templates_of(WORDING, EMOTIONS))
    judge = EmbeddingJudge()
    judges = [judge, BlindJudge(judge)]
    choosing = emolab.load_queries("everyday", split="train", n=N_CHOOSE)
    report = emolab.load_queries("everyday", split="heldout", n=N_REPORT)
    told = [
        emolab.collect_responses(model, queries, out=out / name, max_new_tokens=TOKENS, writing=writing)
        for name, queries in (("choosing", choosing), ("report", report))
    ]
    vectors = vectors_from(model, source, out / "answers")
    search = Search(("all", "late"), (part,), (Round(6, (1.0, 1.75), 1),))
    chosen = select(model, vectors, choosing, told[0], judge=judges[1], out=folder, search=search)
    setting, best, vectors = chosen
    tables = []
    for emotion, alpha in best.items():
        direction = emolab.at(vectors, setting, [emotion])
        table = emolab.sweep(model, direction, report, alphas=(0.0, alpha), out=folder / emotion, max_new_tokens=TOKENS)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    scored = kept_score(table, folder / "scores.parquet", judges=judges, model=model, writing=writing)
    instructed = kept_score(told[1], out / "report" / "scores.parquet", judges=judges, model=model, writing=writing)
    found = summarise(scored, instructed, vectors.emotions, best, judges)
    result = {key: found[key] for key in ("steering", "instruction_following", "blind")}
    result["setting"] = setting_row(setting)
    (mixture,) = emolab.at(vectors, setting, [best])
    result |= {"best": best, "in_vectors": mixture.in_vectors(), "n": len(report)}
    if part == "whole":
        heldout = emolab.load_queries("general", split="heldout")
        evoking = heldout[heldout["emotion"] != "neutral"].groupby("emotion").head(N_EVOKING // 5)
        result["evoking"] = turned(model, vectors, evoking, setting, best, judge, folder / "evoking", TOKENS)
    write_json(done, result)
    return result


def page(model: emolab.Model, results: dict[tuple[str, str], dict]) -> str:
    """docs/results.md."""
    lines = [
        "# What the vectors do on the default model",
        "",
        f"Model {model.name} ({str(model.dtype)[6:]}, fingerprint {model.fingerprint}); greedy text with the default "
        f"repetition penalty, {TOKENS} tokens. Setting and doses were chosen on {N_CHOOSE} training questions by a "
        "judge that does not see the names of emotions; the numbers are of other questions that evoke nothing, "
        f"{next(iter(results.values()))['n']} each. Intervals are 95 % over situations. Written by `tools/results.py`.",
        "",
        "*Target* is the share of answers in which the judge reads the emotion steered to; *blind* is the same judge "
        "without the emotion's name before its eyes; *named* is the share of answers that name the emotion, steered / "
        "instructed; *adherence* is that of the question, as a share of unsteered text.",
    ]
    lines += ["", "## The sources side by side", "", "Means over the five emotions; their rows follow.", ""]
    lines += sources(results)
    for (source, part), found in results.items():
        setting = found["setting"]
        layers = setting["layers"]
        layers = layers if isinstance(layers, str) else f"{layers[0]} to {layers[-1]}"
        lines += ["", f"## {SOURCES[source].capitalize()}, {part} vectors", ""]
        lines += [f"Chosen: site {setting['site']}, layers {layers}.", "", *rows(found)]
    lines += ["", "## Questions that evoke another emotion", ""]
    lines += [
        "Held-out questions that evoke an emotion of their own, steered to another one at the same doses: the share of "
        "answers with the target on top, and with the question's own emotion.",
        "",
        "| vectors | steered to | target | unsteered | random | own emotion | own, unsteered | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (source, _), found in results.items():
        for emotion, c in found.get("evoking", {}).items():
            cells = [c[key] for key in ("target", "target_unsteered", "target_random", "own", "own_unsteered")]
            lines.append(f"| {source} | {emotion} | {' | '.join(f'{x:.2f}' for x in cells)} | {c['n']} |")
    return "\n".join(lines) + "\n"


def sources(results: dict[tuple[str, str], dict]) -> list[str]:
    """One row for each source and part: means over the emotions."""
    lines = ["| vectors | part | **target** | blind | random | shuffled | adherence | repetition | named |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for (source, part), found in results.items():
        mean = means_over_emotions(found)
        shown = [mean[name] for name in ("blind", "random", "shuffled", "adherence", "repetition")]
        cells = [SOURCES[source], part, f"**{mean['target']:.2f}**", *(f"{x:.2f}" for x in shown)]
        lines.append(f"| {' | '.join(cells)} | {mean['named']:.2f} / {mean['named, instructed']:.2f} |")
    return lines


MEASURES = (
    "instructed", "target", "unsteered", "random", "shuffled", "blind", "adherence", "repetition", "named",
    "named, instructed", "refusals",
)  # fmt: skip


def values_of(found: dict, emotion: str) -> list[float]:
    """What MEASURES name, of one emotion."""
    c = found["steering"][emotion]
    adherence = float("nan") if c["adherence_ratio"] is None else c["adherence_ratio"]
    return [
        found["instruction_following"][emotion], c["target_share"], c["unsteered_share"], c["random_share"],
        c["shuffled_share"], found["blind"]["target_share"][emotion], adherence,
        c["repetition"], c["named_share"], c["named_share_instructed"], c["refusal_share"],
    ]  # fmt: skip


def means_over_emotions(found: dict) -> dict[str, float]:
    table = pd.DataFrame([values_of(found, emotion) for emotion in found["steering"]], columns=list(MEASURES))
    return {str(name): float(value) for name, value in table.mean().items()}


def rows(found: dict) -> list[str]:
    """One row for each emotion, and their mean."""
    head = ["emotion", "alpha", "instructed", "**target**", "unsteered", "random", "shuffled", "blind", "adherence"]
    head += ["repetition", "named", "refusals"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for emotion, c in found["steering"].items():
        low, high = c["target_interval"]
        interval = f" [{low:.2f}, {high:.2f}]"
        lines.append(_row(emotion, f"{found['best'][emotion]:g}", values_of(found, emotion), interval))
    lines.append(_row("mean", "", list(means_over_emotions(found).values()), ""))
    return lines


def _row(name: str, alpha: str, values: list[float], interval: str) -> str:
    told, hit, plain, random, shuffled, blind, adherence, repetition, named, named_told, refusals = values
    cells = [name, alpha, f"{told:.2f}", f"**{hit:.2f}**{interval}", *(f"{x:.2f}" for x in (plain, random, shuffled))]
    cells += [f"{blind:.2f}", f"{adherence:.2f}", f"{repetition:.2f}", f"{named:.2f} / {named_told:.2f}"]
    return f"| {' | '.join([*cells, f'{refusals:.2f}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES), help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--dtype", default="bfloat16" if fast_bfloat16() else "float32")
    a = parser.parse_args()
    model = emolab.load_model("smollm2", dtype=a.dtype)
    results = {}
    for source in a.sources:
        for part in ("whole", "specific"):
            results[source, part] = measure(model, source, part, a.out)
            print(source, part, *rows(results[source, part]), sep="\n", flush=True)
    (ROOT / "docs" / "results.md").write_text(page(model, results), encoding="utf-8")
    path = ROOT / "README.md"
    readme = filled(path.read_text(encoding="utf-8"), "results", rows(results["frames", "whole"]))
    path.write_text(filled(readme, "sources", sources(results)), encoding="utf-8")


def filled(page: str, name: str, lines: list[str]) -> str:
    """The page with these lines between the two comments of that name."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = page.split(start)
    return "\n".join([f"{before}{start}", *lines, end]) + rest.split(end)[1]


if __name__ == "__main__":
    main()
