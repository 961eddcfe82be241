"""Write the vectors that the package ships: emolab/data/vectors/smollm2.safetensors.

    python -m tools.ship_vectors [SOURCE] [--out FILE]      # frames (default), topics or answers

Of three sources of vectors (notebook 05 compares them) this takes one, reads or writes its texts with the default
model in float32, and keeps the five default emotions at sites resid and attn, all layers, with the alphas at which text
breaks in the settings that the notebooks use. Nothing is drawn at random: the same machine writes the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import emolab
from emolab import EMOTIONS, Steering
from emolab.experiments.wordings import templates_of

SITES = ("resid", "attn")
SETTINGS = (
    {"site": "attn", "layers": "late"},
    {"site": "attn", "layers": "all"},
    {"site": "resid", "layers": "late"},
    {"site": "attn", "layers": "late", "part": "specific"},
    {"site": "resid", "layers": "late", "part": "specific"},
)
WORDING = "second person, adjective"
N_QUERIES = 72
SHIPPED = Path(emolab.__file__).parent / "data" / "vectors" / "smollm2.safetensors"


def vectors_from(model: emolab.Model, source: str, out: Path | None = None) -> emolab.EmotionVectors:
    """Vectors of the five emotions, with the means that they came from."""
    if source == "answers":
        queries = emolab.load_queries("general", split="train", n=N_QUERIES)
        writing = emolab.Writing(templates=templates_of(WORDING, EMOTIONS))
        responses = emolab.collect_responses(model, queries, out=out, max_new_tokens=60, writing=writing)
    else:
        responses = emolab.responses_from_texts(emolab.load_texts(source, split="train"))
    return emolab.extract_vectors(model, responses, sites=SITES).select(EMOTIONS)


def settings(vectors: emolab.EmotionVectors) -> Iterator[Steering]:
    """The settings whose breaking alphas are shipped."""
    for setting in SETTINGS:
        yield Steering(vectors, dict.fromkeys(vectors.emotions, 1.0), **setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="frames", choices=("frames", "topics", "answers"))
    parser.add_argument("--out", type=Path, default=SHIPPED)
    a = parser.parse_args()
    model = emolab.load_model("smollm2", dtype="float32")
    vectors = vectors_from(model, a.source)
    training = emolab.load_queries("everyday", split="train", n=6)
    for steering in settings(vectors):
        vectors = emolab.find_breaking(model, replace(steering, vectors=vectors), training)
        print(steering.breaking_key, vectors.meta["breaking"][steering.breaking_key], flush=True)
    vectors = replace(vectors, meta={**vectors.meta, "source": a.source}, means=None)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    vectors.save(a.out)
    print(f"{a.out}: {a.out.stat().st_size / 1e6:.2f} MB, {vectors}")


if __name__ == "__main__":
    main()
