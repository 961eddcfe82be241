"""Write the toy model's query set: `python -m tests.mini.queries` rewrites tests/mini/queries.json.

Train: topics that emotional training texts do use, in the phrasings of training. Held out: topics that no emotional
text is about, in phrasings that no emotional text answers. (Two of their names, "clock" and "island", also name a part
of another topic, the exam and the lake.)
"""

from __future__ import annotations

import json
import random

from tests.mini import QUERIES
from tests.mini.corpus import frames, query, topics


def build() -> dict:
    """The query set as written to disk: two queries a training topic, four a held-out one."""
    rng, rows = random.Random(0), []
    opening = {x.split()[0] for x in frames()["instruction"]["plain"]}
    for topic in topics():
        templates = frames()["query"]["heldout" if topic.heldout else "train"]
        # "Give me your impression ..." begins like the instruction "Give a plain answer.", the only place where
        # training has that word: the model takes it for the instruction. It would measure the word, not the vectors.
        templates = [t for t in templates if t.split()[0] not in opening]
        for template in rng.sample(templates, 4 if topic.heldout else 2):
            rows.append(
                {
                    "query": query(rng, topic, [template]),
                    "emotion": "neutral",
                    "situation": topic.name,
                    "split": "heldout" if topic.heldout else "train",
                }
            )
    return {
        "description": "Topics and phrasings for the bundled model, written by its grammar",
        "license": "MIT",
        "language": "en",
        "queries": rows,
    }


def main() -> None:
    data = build()
    head = json.dumps({k: v for k, v in data.items() if k != "queries"})[:-1]
    lines = ",\n".join("  " + json.dumps(row) for row in data["queries"])
    QUERIES.write_text(f'{head}, "queries": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
