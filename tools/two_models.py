"""The default model beside a form of itself that LoRA taught to answer with joy: docs/two_models.md and its figure.

    python -m tools.two_models [--out runs/two_models]

About ten minutes for each model on one core; it goes on where it was stopped.

The adapter learns from the model's own joyful answers to questions that neither study asks, and its weights are added
to the model's. Both models then get the same small study: setting and doses by each one's own choice on training
questions, the report on held-out ones.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import emolab
from emolab import plot
from emolab.answers.queries import spread
from emolab.comparisons.lora import Training, fit_lora, merge_lora
from emolab.models.pretrained import fast_bfloat16
from emolab.studies import QUICK, compare_runs
from emolab.studies.two_runs import TwoRuns

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PLAN = replace(
    QUICK,
    n_queries=(36, 8, 16),
    search=replace(QUICK.search, doses=(0.5, 1.0, 1.5, 2.0)),
    wordings="second person, adjective",  # that smollm2 follows best; one for both
)
N_LEARNED = 24
TRAINING = Training(steps=12, lr=1e-3)
NAME = "smollm2-joyful"


def tuned(folder: Path) -> Path:
    """The folder of the tuned model, made where it is missing."""
    path = folder / NAME
    if not (path / "tokenizer_config.json").exists():
        model = emolab.load_model("smollm2", dtype="float32")
        train = emolab.load_queries("general", split="train")
        studied = emolab.load_queries("general", split="train", n=PLAN.n_queries[0])["query_id"]
        asked = spread(train[~train["query_id"].isin(studied)]).head(N_LEARNED)
        answers = emolab.collect_responses(
            model, asked, emotions=("joy",), out=folder / "learned", max_new_tokens=PLAN.max_new_tokens
        )
        adapter = fit_lora(model, answers, "joy", training=TRAINING, out=folder / "learned")
        merge_lora(model, {adapter: 1.0}).hf.save_pretrained(path)
        model.tokenizer.save_pretrained(path)
    return path


def page(found: TwoRuns, plain: dict, joyful: dict) -> str:
    """docs/two_models.md."""
    n_extract, n_choose, n_report = PLAN.n_queries
    lines = [
        "# Two models side by side",
        "",
        f"smollm2 beside a form of itself, {NAME}: a LoRA of rank {TRAINING.rank} learned in {TRAINING.steps} steps "
        f"from the model's own joyful answers to {N_LEARNED} questions, and was added to its weights. Both got the "
        f"same small study ({plain['dtype']}, seed {plain['seed']}): vectors from the answers to {n_extract} questions "
        f"that the LoRA has not seen, setting and doses chosen on {n_choose} others, the report on {n_report} held-out "
        "ones. "
        "Written by `tools/two_models.py`; how to compare models of your own stands in "
        "[How-to](howto.md#set-two-models-side-by-side).",
        "",
        str(found),
        "",
        f"![{plot.two_models(found.maps, found.doses).emolab_info['title']}](two_models.svg)",
        "",
        "Share of the held-out answers in which the judge reads the emotion that the instruction names; beside it that "
        "of answers steered at the dose that each study chose (random directions in brackets):",
        "",
        f"| emotion | smollm2, instructed | {NAME}, instructed | smollm2, steered | {NAME}, steered |",
        "|---|---|---|---|---|",
    ]
    for emotion in plain["steering"]:
        told = [f"{one['instruction_following'][emotion]:.2f}" for one in (plain, joyful)]
        cells = [one["steering"][emotion] for one in (plain, joyful)]
        told += [f"{c['target_share']:.2f} ({c['random_share']:.2f}) at {c['best_alpha']:g}" for c in cells]
        lines.append(f"| {emotion} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "two_models")
    parser.add_argument("--dtype", default="bfloat16" if fast_bfloat16() else "float32")
    a = parser.parse_args()
    runs = {"plain": "smollm2", "joyful": str(tuned(a.out))}
    summaries = [
        emolab.study(emolab.load_model(source, dtype=a.dtype), out=a.out / name, plan=PLAN)
        for name, source in runs.items()
    ]
    found = compare_runs(*(a.out / name for name in runs), out=a.out / "compared")
    shutil.copy(a.out / "compared" / "figures" / "two_models.svg", DOCS)
    (DOCS / "two_models.md").write_text(page(found, *summaries), encoding="utf-8")


if __name__ == "__main__":
    main()
