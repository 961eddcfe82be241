"""The default model beside a form of itself that LoRA taught to answer with joy: the figure of docs/howto.md.

    .venv/bin/python tools/two_models.py              # about half an hour on one core; goes on where it was stopped

Both are studied by the same small plan; the adapter learns from answers to questions that neither study asks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import emolab
from emolab.answers.queries import spread
from emolab.comparisons.lora import Training, fit_lora, merge_lora
from emolab.models.pretrained import fast_bfloat16
from emolab.studies import QUICK

ROOT = Path(__file__).parents[1]
PLAN = replace(QUICK, n_queries=(36, 8, 16), search=replace(QUICK.search, doses=(0.5, 1.0, 1.5, 2.0)))
N_LEARNED = 24
TRAINING = Training(steps=24, lr=2e-3)


def tuned(folder: Path) -> Path:
    """The folder of the tuned model, made where it is missing."""
    path = folder / "smollm2-joyful"
    if not (path / "config.json").exists():
        model = emolab.load_model("smollm2", dtype="float32")
        train = emolab.load_queries("general", split="train")
        studied = emolab.load_queries("general", split="train", n=PLAN.n_queries[0])["query_id"]
        asked = spread(train[~train["query_id"].isin(studied)]).head(N_LEARNED)
        answers = emolab.collect_responses(
            model, asked, emotions=("joy",), out=folder / "learned", max_new_tokens=PLAN.max_new_tokens
        )
        adapter = fit_lora(model, answers, "joy", training=TRAINING, out=folder / "learned")
        print(f"loss {adapter.meta['loss'][0]:.2f} to {adapter.meta['loss'][1]:.2f} nats a token")
        merge_lora(model, {adapter: 1.0}).hf.save_pretrained(path)
        model.tokenizer.save_pretrained(path)
    return path


def main(folder: Path) -> None:
    dtype = "bfloat16" if fast_bfloat16() else "float32"
    for name, source in (("plain", "smollm2"), ("joyful", str(tuned(folder)))):
        emolab.study(emolab.load_model(source, dtype=dtype), out=folder / name, plan=PLAN)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "two_models")
