"""Reading token by token: scores are those of the hidden states, planted turns, passages and targets are found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import emolab
from emolab import say
from emolab.base.errors import EmolabError
from emolab.experiments import (
    last_projections,
    rank_curve,
    scenario_ranks,
    token_scores,
    top_passages,
    turning_curve,
    turning_texts,
)
from emolab.models.prompts import render_prompts
from emolab.vectors.controls import random_like
from emolab.vectors.vectors import extract_vectors
from tests import oracle

HALVES = pd.DataFrame(
    {"topic": ["park", "park", "sea"], "label": ["joy", "anger", "joy"], "text": ["sun and sea", "cold rain", "good"]}
)


@pytest.fixture(scope="module")
def vectors(tiny_llama):
    queries = list(oracle.queries(n_train=5, n_heldout=0)["query"])
    return extract_vectors(tiny_llama, oracle.responses(tiny_llama, queries, ("anger", "joy", "fear")))


def test_texts_turn_from_each_label_to_each_other_of_their_topic():
    texts = turning_texts(HALVES)
    assert texts["text"].to_list() == ["sun and sea cold rain", "cold rain sun and sea"]
    assert texts[["first", "second"]].to_numpy().tolist() == [["joy", "anger"], ["anger", "joy"]]
    turned = [text[turn:] for text, turn in zip(texts["text"], texts["turn"], strict=True)]
    assert turned == ["cold rain", "sun and sea"]
    assert len(turning_texts(emolab.load_texts("topics", split="heldout"))) == 10 * 6 * 5
    with pytest.raises(EmolabError, match="no topic of these texts has two labels"):
        turning_texts(HALVES[HALVES["label"] == "joy"])


def test_scores_are_those_of_the_hidden_states(tiny_llama, vectors):
    """Of both directions, whatever stands beside a text in its batch, behind the neutral prompt of its query."""
    texts = turning_texts(HALVES).assign(query="tell me about the park")
    texts.loc[2] = {"topic": "sea", "first": "joy", "second": "fear", "text": "good", "turn": 0, "query": "sea ?"}
    scores = token_scores(tiny_llama, texts, vectors, layer=1, seed=3)
    specific = vectors.part("specific")
    for control, source in {"none": specific, "random": random_like(specific, seed=3)}.items():
        direction = torch.nn.functional.normalize(source.get("resid", layer=1).double(), dim=-1)
        found = []
        for query, text in zip(texts["query"], texts["text"], strict=True):
            ids = tiny_llama.tokenizer(render_prompts(tiny_llama, [query])[0] + text, add_special_tokens=False)
            with torch.no_grad():
                hidden = tiny_llama.hf(torch.tensor([ids.input_ids]), output_hidden_states=True).hidden_states[2][0]
            found.append(hidden[-len(text.split()) :].double() @ direction.T)
        values = torch.cat(found).numpy()
        expected = (values - values.mean(0)) / values.std(0)
        own = scores[scores["control"] == control]
        own = own.pivot(index=["text_id", "position"], columns="emotion", values="score")
        assert own[list(vectors.emotions)].to_numpy() == pytest.approx(expected, abs=1e-3)
    one = scores[(scores["control"] == "none") & (scores["emotion"] == "joy")]
    assert "".join(one[one["text_id"] == 0]["token"]).split() == "sun and sea cold rain".split()
    assert one[one["text_id"] == 0]["begin"].to_list() == [0, 4, 8, 12, 17]
    assert one["second"].to_list() == ["anger"] * 5 + ["joy"] * 5 + ["fear"]


def test_position_0_never_counts(tiny_llama, vectors):
    texts = pd.DataFrame({"text": ["sun and sea", "cold rain"], "prompt": ""})
    scores = token_scores(tiny_llama, texts, vectors, layer=1)
    assert sorted(scores["position"].unique()) == [0, 1, 2]  # BOS stands at 0 of the sequence
    assert np.isfinite(scores["score"]).all()


def planted(lag: int = 0) -> pd.DataFrame:
    """Four topics; the own emotion scores 1, the others 0, and the second half begins to show `lag` tokens late."""
    rows = []
    for topic in range(4):
        for text, (first, second) in enumerate([("joy", "fear"), ("fear", "joy")]):
            for position in range(20):
                for control in ("none", "random"):
                    for emotion in ("anger", "fear", "joy"):
                        shows = first if position < 10 + lag else second
                        score = float(emotion == (shows if control == "none" else "anger"))
                        of_text = (2 * topic + text, f"t{topic}", first, second, 50)
                        token = (5 * position, f" w{position}", position)
                        rows.append((*of_text, *token, control, emotion, score))
    columns = "text_id topic first second turn begin token position control emotion score".split()
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("lag", [0, 3])
def test_a_turn_is_found_where_it_is(lag):
    curve = turning_curve(planted(lag), reach=8)
    assert curve["at"].min() == -8 and curve["at"].max() == 7 and curve.attrs["lag"] == lag
    own = curve[curve["control"] == "none"].pivot(index="at", columns="role", values="score")
    assert own["second"].to_list() == [0.0] * (8 + lag) + [1.0] * (8 - lag)
    assert (own["first"] == 1 - own["second"]).all() and (own["others"] == 0).all()
    assert curve.attrs["told"]["none"][0] == 1 and curve.attrs["told"]["random"][0] == 0
    assert curve.attrs["chance"] == pytest.approx(1 / 3)
    said = say.turning_curve(curve)
    assert "1.00 [" in said.verdict and "chance 0.33" in said.verdict
    assert said.endswith("leads from the first token on." if lag == 0 else "the new one leads after 3 tokens.")


def test_a_turn_that_does_not_show_is_told_so():
    scores = planted()
    curve = turning_curve(scores.assign(score=(scores["emotion"] == "anger").astype(float)))
    assert curve.attrs["lag"] is None and curve.attrs["told"]["none"][0] == 0
    assert say.turning_curve(curve).endswith("no more than by chance was found.")
    with pytest.raises(EmolabError, match="turn to or from 'joy', and the scores are of anger, fear"):
        turning_curve(scores[scores["emotion"] != "joy"])


def test_the_passages_that_score_highest():
    scores = pd.DataFrame({"text_id": np.repeat([0, 1, 2], 6), "position": np.tile(range(6), 3)})
    scores = scores.assign(
        token=[f" {word}" for word in "a b c d e f g h i j k l m n o p q r".split()],
        label=np.repeat(["joy", "fear", "joy"], 6), control="none", emotion="joy",
        score=[0, 0, 5, 5, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 8],
    )  # fmt: skip
    found = top_passages(scores, n=2, width=2)
    assert found[["rank", "text_id", "passage", "score", "hit"]].to_numpy().tolist() == [
        [1, 2, "q r", 8.0, True], [2, 0, "c d", 5.0, True],
    ]  # fmt: skip
    third = top_passages(scores, n=3, width=2).iloc[2]
    assert third["score"] == 4.5 and third["passage"] == "g h" and not third["hit"]
    both = pd.concat([top_passages(scores, n=3, width=2), found.assign(control="random", hit=False)])
    assert say.passages(both).startswith("Of the passages that point most along an emotion, 0.67 [")
    assert "(along random directions 0.00 [" in say.passages(both)
    with pytest.raises(EmolabError, match="no text has 7 tokens; take a smaller width"):
        top_passages(scores, width=7)


SCENARIOS = pd.DataFrame(
    {
        "query_id": ["a", "b", "c", "d", "e"],
        "query": ["did the dog walk ?", "was it cold ?", "how did you feel ?", "so happy today ?", "the road ?"],
        "emotion": ["joy", "anger", "fear", "joy", "neutral"],
        "situation": ["dog", "cold", "feel", "happy", ""],
    }
)


def test_ranks_are_those_of_the_projections_and_what_names_its_emotion_is_left_out(tiny_llama, vectors):
    ranks = scenario_ranks(tiny_llama, SCENARIOS, vectors, layers=[1, 2], seed=5)
    assert set(ranks["query_id"]) == {"a", "b", "c"} and len(ranks) == 3 * 2 * 2
    specific = vectors.part("specific")
    for control, source in {"none": specific, "random": random_like(specific, seed=5)}.items():
        table = last_projections(tiny_llama, SCENARIOS.head(3), source, layers=[1, 2])
        for layer, own in table.groupby("layer"):
            wide = own.pivot(index="query_id", columns="emotion", values="projection")
            scores = (wide - wide.mean()) / wide.std()
            for query, target in SCENARIOS.head(3)[["query_id", "emotion"]].to_numpy():
                chosen = (ranks["query_id"] == query) & (ranks["layer"] == layer) & (ranks["control"] == control)
                assert ranks[chosen]["rank"].item() == (scores.loc[query] >= scores.loc[query, target]).sum()
                assert ranks[chosen]["target"].item() == target
    with pytest.raises(EmolabError, match="no query evokes one of anger, fear, joy without naming it"):
        scenario_ranks(tiny_llama, SCENARIOS.tail(2), vectors)


def test_shares_of_ranks_by_layer():
    ranks = pd.DataFrame(
        {
            "query_id": list("abcd") * 4, "situation": list("wxyz") * 4, "target": "joy",
            "layer": np.tile(np.repeat([0, 1], 4), 2), "control": np.repeat(["none", "random"], 8),
            "rank": [1, 2, 3, 3, 1, 1, 1, 1, 3, 3, 3, 3, 2, 2, 1, 3],
        }
    )  # fmt: skip
    ranks.attrs["about"] = {"params": {"k": 3}}
    curve = rank_curve(ranks).set_index(["control", "layer"])["value"]
    assert curve.to_dict() == {("none", 0): 0.25, ("none", 1): 1, ("random", 0): 0, ("random", 1): 0.25}
    two = rank_curve(ranks, top=2)
    assert two.set_index(["control", "layer"])["value"]["none", 0] == 0.5
    assert two.attrs["chance"] == pytest.approx(2 / 3)
    assert "1.00 [" in say.rank_curve(rank_curve(ranks)) and "at layer 1" in say.rank_curve(rank_curve(ranks))
    assert say.rank_curve(rank_curve(ranks[ranks["layer"] == 0])).endswith("no layer was found beyond both.")
