"""What the validation loss does not show, measured while the bundled model trains.

A model can have a fine loss and not read the instruction; or read it and have vectors that steer into word soup.
"""

from __future__ import annotations

import numpy as np
import torch

from emolab.answers.generation import generate
from emolab.answers.responses import collect_responses
from emolab.base.labels import EMOTIONS
from emolab.judges.scoring import perplexity
from emolab.models.load import load_model
from emolab.models.prompts import render_prompts
from emolab.steering.steering import Steering
from emolab.vectors.controls import random_like
from emolab.vectors.vectors import extract_vectors
from tests.mini import mini_lexicon, mini_queries


def check(hf, tokenizer, *, alpha: float = 0.8) -> dict[str, float]:
    """Instruction following and steering of a model in training, on held-out questions, read by the grammar's lexicon.

    follows: share of instructed answers with the emotion on top; plain: share of neutral ones without instruction.
    steered, worst: share at one fixed setting (residual stream, all layers, whole vectors), mean and worst emotion;
    random: the same with random directions. ppl_ratio: median perplexity given the instruction, steered over
    instructed. pair_cosine: mean cosine between vectors of different emotions at the middle layer (above 0.9 they are
    not told apart). resid_norm: median norm of the residual stream at the last layer.
    """
    model, judge = load_model((hf, tokenizer)), mini_lexicon()
    queries = mini_queries().groupby(["split", "situation"]).head(1)
    train, test = queries[queries["split"] == "train"].head(16), queries[queries["split"] == "heldout"]
    asked, emotions = list(test["query"]), [e for e in EMOTIONS for _ in range(len(test))]

    def hits(texts: list[str], labels: list[str]) -> np.ndarray:
        return np.array([judge.labels[i] for i in judge(texts).argmax(1)]) == np.array(labels)

    instructed = generate(model, [p for e in EMOTIONS for p in render_prompts(model, asked, e)], raw=True)
    responses = collect_responses(model, train)
    vectors = extract_vectors(model, responses, sites=("resid",))

    def steer(source) -> list[str]:
        each = {e: Steering(source, {e: alpha}) for e in EMOTIONS}
        return generate(model, asked * len(EMOTIONS), steering=[each[e] for e in emotions])

    steered = steer(vectors)
    by_emotion = hits(steered, emotions).reshape(len(EMOTIONS), -1).mean(1)
    ppl = [np.nanmedian(perplexity(model, asked * 5, t, conditions=emotions)) for t in (steered, instructed)]
    unit = torch.nn.functional.normalize(vectors.get("resid", layer=model.n_layers // 2).double(), dim=-1)
    cosines = (unit @ unit.T)[~torch.eye(len(EMOTIONS), dtype=torch.bool)]
    found = {
        "follows": hits(instructed, emotions).mean(),
        "plain": hits(generate(model, asked), ["neutral"] * len(asked)).mean(),
        "steered": by_emotion.mean(),
        "worst": by_emotion.min(),
        "random": hits(steer(random_like(vectors)), emotions).mean(),
        "ppl_ratio": ppl[0] / ppl[1],
        "pair_cosine": cosines.mean(),
        "resid_norm": vectors.resid_norm[-1],
    }
    return {key: round(float(value), 3) for key, value in found.items()}
