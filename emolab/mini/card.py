"""Write the bundled model's card from its training log and a study of it: `python -m emolab.mini.card runs/mini`."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from emolab.mini.corpus import KINDS, topics
from emolab.mini.train import WEIGHTS
from emolab.plot.run import read_summary

_TEXT = """---
license: mit
language: en
library_name: transformers
tags: [emotion, steering, interpretability, teaching]
---
# mini

A very small chat model that follows emotion, trained from nothing by emolab so that emotion vectors can be studied on
a laptop without a download. It is a teaching and test model: it shows that method and code work, and is no evidence
about any other model.

| | |
|---|---|
| architecture | Llama, {layers} layers, {heads} heads, d_model {width}, {parameters:,} parameters, fp16 |
| tokenizer | word level, {vocab:,} entries; words outside the grammar are spelled out letter by letter |
| context | {context} tokens |
| prompt | chat template: an optional system turn ("Answer with joy.", "Answer with a little joy.", "Answer with great joy.") and a user turn |
| fingerprint | `{fingerprint}` |

## Data

Texts written by the grammar in `emolab/mini/corpus.py` as training goes on, never twice the same: {n_topics} topics,
{n_heldout} of them held out of every emotional text, as are {n_phrasings} phrasings of the question. Neutral and emotional
answers share all sentences and differ in the words that fill their slots. Shares of texts: {kinds}. In the last six kinds
the emotion is not asked for: it has to be inferred from the text so far.

## Training

{steps:,} steps of {batch} texts, {tokens:.1f} million tokens, Muon for matrices and AdamW for the rest, seed {seed}, about half an
hour to an hour on two CPU cores. `make mini` repeats it. Last line of the log: loss {loss}, binding gap {gap} nats (the loss with a
wrong emotion in the instruction minus that with the right one).

## Results

`emolab study --model mini`, held-out topics and phrasings, greedy text, {n_report} questions. The judge compares sentence
embeddings with prototype sentences. Site, layers, part and dose were chosen on {n_select} training questions: {part} vectors at
`{site}`, layers {setting_layers}. Without an instruction {neutral:.0%} of the answers are read as neutral.

| emotion | instructed: on top | steered: on top (95 % interval) | dose | random direction | shuffled labels | adherence / unsteered | perplexity / instructed |
|---|---|---|---|---|---|---|---|
{rows}

Steered means without any instruction; perplexity is that of the unsteered model given the emotional instruction, median. The
share of emotion words (the grammar's own lexicon, a second reading): instructed {lexicon_instructed}; steered {lexicon_steered}.

## Limits

English of a few hundred sentence frames, often odd in meaning. Greedy answers are much alike. It knows the topics of
its grammar and nothing else. A negative dose gives plain or broken text, never an opposite emotion. Do not use it to
say anything about emotions of models or people.
"""


def card(run: str | Path, log: str | Path, settings: str | Path) -> str:
    """The text of the card; every number comes from the files."""
    summary = read_summary(run)
    config = json.loads((WEIGHTS / "config.json").read_text())
    trained, last = json.loads(Path(settings).read_text()), list(csv.DictReader(Path(log).open()))[-1]
    rows = []
    for emotion, s in summary["steering"].items():
        low, high = s["target_interval"]
        rows.append(
            f"| {emotion} | {summary['instruction_following'][emotion]:.2f} | {s['target_share']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {s['best_alpha']:g} | {s['random_share']:.2f} | {s['shuffled_share']:.2f} | {s['adherence_ratio']:.2f} "
            f"| {s['perplexity_ratio']:.2f} |"
        )
    lexicon = {key: ", ".join(f"{e} {x:.2f}" for e, x in shares.items()) for key, shares in summary["lexicon"].items()}
    from emolab.mini.corpus import frames

    return _TEXT.format(
        layers=config["num_hidden_layers"], heads=config["num_attention_heads"], width=config["hidden_size"],
        parameters=trained["parameters"], vocab=config["vocab_size"], context=config["max_position_embeddings"],
        fingerprint=summary["fingerprint"], n_topics=len(topics()), n_heldout=sum(t.heldout for t in topics()),
        n_phrasings=len(frames()["query"]["heldout"]), kinds=", ".join(f"{k} {v:.0%}" for k, v in KINDS.items()),
        steps=trained["steps"], batch=trained["batch"], tokens=int(last["tokens"]) / 1e6, seed=trained["seed"],
        loss=last["loss"], gap=last["binding_gap"], n_report=summary["n_queries"]["report"],
        n_select=summary["n_queries"]["select"], part=summary["setting"]["part"], site=summary["setting"]["site"],
        setting_layers=summary["setting"]["layers"], neutral=summary["neutral_share"], rows="\n".join(rows),
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
