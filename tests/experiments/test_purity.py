"""Parts of a vector at equal norm, and what judges read of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.answers.generation import generate
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.experiments import parts
from emolab.experiments.parts import PARTS, UNSTEERED, equal_norm_parts, part_purity, purity
from emolab.judges.judges import FunctionJudge
from emolab.steering.settings import Setting
from emolab.steering.steering import Steering
from tests import tiny

LABELS = [*EMOTIONS, NEUTRAL]


def scored(n: int = 6) -> pd.DataFrame:
    """Whole vectors always hit; the specific part hits on every other query; the base gives another emotion."""
    rows = []
    for part in (UNSTEERED, *PARTS):
        for emotion in EMOTIONS:
            for q in range(n):
                tops = {"whole": emotion, "specific": emotion if q % 2 else NEUTRAL, "shared": "anger"}
                top = tops.get(part, NEUTRAL)
                if part == "shared" and emotion == "anger":
                    top = "fear"
                p = {f"p_{label}": 0.75 if label == top else 0.05 for label in LABELS}
                rows.append({"query_id": f"q{q}", "emotion": emotion, "part": part, "top": top, **p})
    table = pd.DataFrame(rows)
    table.attrs["about"] = {"model": {"name": "made"}, "n": f"{n} queries", "seed": 0, "params": {"site": "resid"}}
    return table


@pytest.mark.parametrize("site", ["resid", "attn"])
def test_parts_have_equal_norm_and_the_right_direction(tiny_llama, site):
    vectors = tiny.random_vectors(tiny_llama)
    made = equal_norm_parts(vectors, site)
    norm = vectors.get(site).norm(dim=-1)
    assert list(made) == list(PARTS) and len(made["random"]) == 3
    for variants in made.values():
        for v in variants.values():
            torch.testing.assert_close(v.get(site).norm(dim=-1), norm, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made["whole"][-1].get(site), vectors.get(site))
    cosine = torch.cosine_similarity(made["shared"][-1].get(site), vectors.part("shared").get(site), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    cosine = torch.cosine_similarity(made["specific"][-1].get(site), vectors.part("specific").get(site), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_every_part_is_steered_and_judged(tiny_llama):
    vectors = tiny.random_vectors(tiny_llama, scale=2.0)
    judge = FunctionJudge(lambda texts: np.tile([0.2, 0.2, 0.2, 0.4], (len(texts), 1)), (*vectors.emotions, NEUTRAL))
    queries = ["tell me about the park", "did you see the dog ?"]
    table = part_purity(tiny_llama, vectors, queries, alpha={"anger": 1, "joy": 1, "sadness": 2}, judge=judge,
                        max_new_tokens=5)  # fmt: skip
    assert len(table) == 3 * 5 * 2 and table.groupby("part").size().eq(6).all()
    assert table[table["part"] == UNSTEERED].groupby("query_id")["text"].nunique().eq(1).all()
    base = equal_norm_parts(vectors, "resid")["shared"][-1]
    expected = generate(tiny_llama, [queries[1]], steering=Steering(base, {"sadness": 2}), max_new_tokens=5)[0]
    row = table[(table["part"] == "shared") & (table["emotion"] == "sadness") & (table["query"] == queries[1])]
    assert row["text"].item() == expected and row["alpha"].item() == 2
    assert table["text"].nunique() > 5 and set(table[table["part"] == "random"]["seed"]) == {0, 1}
    assert set(purity(table)["emotion"]) == {"all", *vectors.emotions}


def test_breaking_doses_are_those_of_the_whole_vector(tiny_llama, monkeypatch):
    """A part is as long as the whole vector is where it breaks; two emotions, one question."""
    steered = []
    monkeypatch.setattr(parts, "generate", lambda m, asked, *, steering, **_: steered.extend(steering) or asked)
    setting = Setting(site="attn", layers=[1], unit="breaking")
    vectors = tiny.random_vectors(tiny_llama, ("anger", "joy"))
    key = Steering(vectors, {"joy": 1.0}, site="attn", layers=[1]).breaking_key
    vectors = replace(vectors, meta={**vectors.meta, "breaking": {key: {"anger": 2.0, "joy": 5.0}}})
    judge = FunctionJudge(lambda texts: np.tile([0.5, 0.5], (len(texts), 1)), ("joy", NEUTRAL))
    table = part_purity(tiny_llama, vectors, ["a dog"], alpha=0.5, setting=setting, judge=judge)
    assert [s and s.doses for s in steered] == [None, *[{"anger": 1.0}] * 4, *[{"joy": 2.5}] * 4]
    assert {s.layer_numbers[0] for s in steered if s} == {1} and set(table["alpha"]) == {0.0, 0.5}


def test_purity_numbers():
    found = purity(scored()).set_index(["part", "emotion", "measure"])
    assert found.loc[("whole", "all", "target"), "value"] == 1 and found.loc[("whole", "all", "leak"), "value"] == 0
    assert found.loc[("shared", "all", "leak"), "value"] == 1
    assert found.loc[("shared", "all", "emotional"), "value"] == 1
    assert found.loc[("shared", "all", "p_emotional"), "value"] == pytest.approx(0.95)
    assert found.loc[(UNSTEERED, "all", "emotional"), "value"] == 0
    row = found.loc[("specific", "all", "target")]
    assert row.minus_whole == -0.5 and row.minus_whole_lo < -0.5 < row.minus_whole_hi
    assert (found.loc["whole", ["minus_whole", "minus_whole_lo", "minus_whole_hi"]] == 0).all(axis=None)


def test_bad_input_is_named(tiny_llama):
    vectors = tiny.random_vectors(tiny_llama)
    with pytest.raises(EmolabError, match='site "head"'):
        part_purity(tiny_llama, vectors, ["a"], setting=Setting(site="head"))
    with pytest.raises(EmolabError, match="without neutral"):
        purity(scored().drop(columns="p_neutral"))
