"""Write the toy model's card from its training log and a study of it: `python -m tests.mini.card runs/mini`.

The study is `emolab.study(WEIGHTS, queries=mini_queries(), judges=[default_judge(EMOTIONS), mini_lexicon()], ...)`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from emolab.studies.figures import read_summary
from tests.mini import WEIGHTS
from tests.mini.corpus import KINDS, MIXED, frames, topics
from tests.mini.train import CHUNK, EASY

LEXICON = ("instruction_following", "target_share")
TEMPLATE = Path(__file__).with_name("card_template.md")


def card(run: str | Path, log: str | Path, settings: str | Path) -> str:
    """The text of the card; every number comes from the files."""
    summary = read_summary(run)
    config = json.loads((WEIGHTS / "config.json").read_text())
    trained, last = json.loads(Path(settings).read_text()), list(csv.DictReader(Path(log).open()))[-1]
    rows = []
    for emotion, s in summary["steering"].items():
        low, high = s["target_interval"]
        rows.append(
            f"| {emotion} | {summary['instruction_following'][emotion]:.2f} "
            f"| {s['target_share']:.2f} ({low:.2f} to {high:.2f}) | {s['best_alpha']:g} "
            f"| {s['random_share']:.2f} | {s['shuffled_share']:.2f} | {s['adherence_ratio']:.2f} "
            f"| {s['perplexity_ratio']:.2f} |"
        )
    read = summary["lexicon"]
    lexicon = {key: ", ".join(f"{e} {x:.2f}" for e, x in read[key].items()) for key in LEXICON}
    return TEMPLATE.read_text().format(
        layers=config["num_hidden_layers"], heads=config["num_attention_heads"], width=config["hidden_size"],
        parameters=trained["parameters"], vocab=config["vocab_size"], context=config["max_position_embeddings"],
        fingerprint=summary["fingerprint"], n_topics=len(topics()), n_heldout=sum(t.heldout for t in topics()),
        n_phrasings=len(frames()["query"]["heldout"]), kinds=", ".join(f"{k} {v:.0%}" for k, v in KINDS.items()),
        mixed=MIXED, easy=EASY * CHUNK, steps=trained["steps"], batch=trained["batch"], seed=trained["seed"],
        tokens=int(last["tokens"]) / 1e6,
        loss=last["loss"], gap=last["binding_gap"], n_report=summary["n_queries"]["report"],
        n_select=summary["n_queries"]["select"], part=summary["setting"]["part"], site=summary["setting"]["site"],
        setting_layers=summary["setting"]["layers"], neutral=summary["neutral_share"], plain=read["neutral_share"],
        rows="\n".join(rows),
        lexicon_instructed=lexicon["instruction_following"], lexicon_steered=lexicon["target_share"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model card of mini from a run of the study.")
    parser.add_argument("run", type=Path)
    a = parser.parse_args()
    text = card(a.run, WEIGHTS / "train_log.csv", WEIGHTS / "training.json")
    (WEIGHTS / "README.md").write_text(text)
    print(f"wrote {WEIGHTS / 'README.md'}")


if __name__ == "__main__":
    main()
