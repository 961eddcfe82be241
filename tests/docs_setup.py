"""What examples in docstrings and in docs/ may take for granted: a small study of the default model, and some files."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch

import emolab
from emolab import plot
from emolab.answers import generation
from emolab.base.storage import write_json, write_parquet
from emolab.heads import attention, attribution, head_vectors
from emolab.judges import judges
from emolab.models.prompts import encode, render_prompts
from emolab.models.sites import output_weights
from emolab.steering.gguf import to_gguf
from emolab.studies.numbers import summarise
from tests.mini import WEIGHTS, mini_queries

TOKENS = 12
ADJECTIVES = dict(anger="furious", disgust="disgusted", fear="terrified", joy="overjoyed", sadness="heartbroken")
SHOWN = "You are {0}. {{query}} Answer in the first person and show how {0} you are."  # which this model follows best
TEMPLATES = {"neutral": "{query}"} | {emotion: SHOWN.format(word) for emotion, word in ADJECTIVES.items()}
WORDS = {
    "anger": {"angry", "furious", "rage"}, "disgust": {"disgusting", "gross"}, "fear": {"afraid", "scared", "fear"},
    "joy": {"happy", "joy", "glad"}, "sadness": {"sad", "sorrow", "lonely"},
}  # fmt: skip
LEXICON = judges.LexiconJudge(WORDS)


@cache
def study() -> dict[str, Any]:
    """A study of eight training and two held-out queries, as the names that examples use."""
    model = emolab.load_model("smollm2")
    every = emolab.load_queries()
    train, queries = (
        every[every["split"] == split].groupby("situation").head(1).head(n).reset_index(drop=True)
        for split, n in (("train", 8), ("heldout", 2))
    )
    writing = emolab.Writing(templates=TEMPLATES)
    responses, told = (
        emolab.collect_responses(model, asked, max_new_tokens=TOKENS, writing=writing) for asked in (train, queries)
    )
    sites = ("resid", "attn", "mlp", "head")
    means, heldout = (emolab.response_means(model, table, sites=sites) for table in (responses, told))
    vectors = emolab.extract_vectors(model, responses, sites=sites, means=means)
    directions = emolab.at(vectors, emolab.Setting(site="attn"))
    controls = ("random", "shuffled", "prompt")
    table = emolab.sweep(model, directions, queries, alphas=(-1, 0, 0.5, 1), controls=controls, max_new_tokens=TOKENS)
    both = [judges.EmbeddingJudge(), LEXICON]
    batch = encode(model, render_prompts(model, ["Tell me about the park."] * 2))
    scored = emolab.score(table, judges=both, model=model)
    return {
        "model": model, "hf_model": model.hf, "hf_tokenizer": model.tokenizer, "bridge": model.bridge,
        "train": train, "training_queries": train.head(2), "queries": queries,
        "situations": every.set_index("query_id")["situation"],
        "responses": responses, "heldout_responses": told,
        "others": emolab.responses_from_texts(emolab.load_texts("topics")),
        "texts": list(responses["text"]), "labels": list(responses["condition"]),
        "first": list(range(24)), "second": list(range(24, 48)),
        "means": means, "heldout": heldout, "heldout_means": heldout,
        "vectors": vectors, "ours": vectors, "theirs": vectors,
        "table": table, "scored": scored, "scores": scored,
        "instructed": emolab.score(told, judges=both, model=model), "judge": both[0],
        "tokens": batch.input_ids, "mask": batch.attention_mask, "words": WORDS, "lexicon": LEXICON,
        "query": queries["query"][0], "prompt": responses["prompt"][1], "text": responses["text"][1],
    }  # fmt: skip


@cache
def toy() -> dict[str, Any]:
    """In place of the default model, for examples that write hundreds of texts."""
    model = emolab.load_model(WEIGHTS)
    train, heldout = (mini_queries(split).groupby("situation").head(1) for split in ("train", "heldout"))
    responses = emolab.collect_responses(model, train.head(6))
    vectors = emolab.extract_vectors(model, responses, sites=("resid", "attn", "mlp"))
    return {"model": model, "vectors": vectors, "queries": heldout.head(2)}


# Made only for the examples that name them.
LATER = {
    "effects": lambda s: emolab.head_effects(
        s["model"], s["vectors"], s["responses"], test=emolab.HeadTest(words=WORDS, n_queries=2), screen=3
    ),
    "curve": lambda s: emolab.ablation_curve(
        s["model"], s["vectors"], s["heldout_responses"], ranked=made("effects"), ks=(0, 2), n_random=2,
        test=emolab.HeadTest(judge=s["judge"], n_queries=2, max_new_tokens=TOKENS),
    ),
    "maps": lambda s: head_vectors.head_maps(s["vectors"], s["means"], W_O=output_weights(s["model"]), n_splits=5),
}  # fmt: skip


@cache
def made(name: str) -> Any:
    return LATER[name](study())


def namespace(source: str = "") -> dict[str, Any]:
    """The study, emolab's public names, and of `LATER` what the source names."""
    public = {name: getattr(emolab, name) for name in emolab.__all__}
    ready = ("EmbeddingJudge", "FunctionJudge", "LexiconJudge")
    asked = {name: getattr(judges, name) for name in ready}
    asked |= {"render_prompts": render_prompts, "output_weights": output_weights}
    asked |= {"emotion_tokens": attribution.emotion_tokens, "top_words": attribution.top_words, "plot": plot}
    asked["attention_pattern"] = attention.attention_pattern
    asked |= {name: getattr(head_vectors, name) for name in ("head_maps", "head_cosines", "embed_heads")}
    asked |= {"emolab": emolab, "np": np, "pd": pd, "torch": torch, "safetensors": safetensors, "Path": Path}
    return public | asked | study() | {name: made(name) for name in LATER if re.search(rf"\b{name}\b", source)}


def keep_short(monkeypatch) -> None:
    """Examples write as their reader would, 80 tokens an answer; here they have only to run."""
    write = generation.write

    def short(runner, batch, config, *rest):
        config.max_new_tokens = min(config.max_new_tokens, TOKENS)
        return write(runner, batch, config, *rest)

    monkeypatch.setattr(generation, "write", short)


def files(folder: Path) -> None:
    """Files of others that examples read: a model, vectors as published, plain tensors, control vectors."""
    s = study()
    (folder / "path/to/a").mkdir(parents=True)
    (folder / "path/to/a/directory").symlink_to(WEIGHTS)
    published = folder / "EMVector" / "qwen2.5"
    published.mkdir(parents=True)
    for emotion in s["vectors"].emotions:
        layers = s["vectors"].get("attn", emotion=emotion).tolist()
        text = json.dumps({str(i): [x] for i, x in enumerate(layers)})
        (published / f"qwen2_5_7b_{emotion}.json").write_text(text, encoding="utf-8")
    safetensors.torch.save_file({"joy": s["vectors"].get("resid", emotion="joy")}, folder / "mine.safetensors")
    for name, emotion in (("happy", "joy"), ("sad", "sadness")):
        to_gguf(s["vectors"], folder / f"{name}.gguf", {emotion: 1.0})


def run_folder(out: Path) -> None:
    """Of the folder of a run, the files that docs/howto.md reads."""
    s = study()
    s["vectors"].save(out / "vectors.safetensors")
    s["means"].save(out / "response_means.safetensors")
    write_parquet(out / "scores.parquet", s["scored"])
    write_parquet(out / "instructed_scores.parquet", s["instructed"])
    best = dict.fromkeys(s["vectors"].emotions, 1.0)
    write_json(out / "summary.json", summarise(s["scored"], s["instructed"], s["vectors"].emotions, best, [s["judge"]]))
