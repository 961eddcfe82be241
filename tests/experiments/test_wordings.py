"""Wordings of the instruction: the one that a model follows is kept, and what it does not follow is said."""

from __future__ import annotations

import numpy as np
import pytest

import emolab
from emolab import Writing
from emolab.answers import generation
from emolab.base.errors import EmolabError
from emolab.base.stats import interval
from emolab.experiments.wordings import WORDINGS, choose_wording, templates_of
from emolab.judges.judges import FunctionJudge
from emolab.models.prompts import render_prompts

QUERIES = emolab.load_queries(["tell me about the park .", "how ?", "a dog", "a cat", "a road", "a house"])
EMOTIONS = ("joy", "awe")


def read(texts):
    """Texts are made to end with what they show."""
    labels = [*EMOTIONS, "neutral"]
    return np.eye(3)[[labels.index(text.split()[-1]) for text in texts]]


JUDGE = FunctionJudge(read, (*EMOTIONS, "neutral"))


@pytest.fixture
def follows(monkeypatch):
    """A model that follows nouns, awe half of the time, and adjectives not at all; what it was asked."""
    asked = []

    def written(model, prompts, **options):
        asked.append((list(prompts), options))
        texts = []
        for i, prompt in enumerate(prompts):
            told = next((e for e in EMOTIONS if f"Answer with {e}" in prompt), "neutral")
            texts.append("well neutral" if told == "awe" and i % 2 else f"well {told}")
        return texts

    monkeypatch.setattr(generation, "generate", written)
    return asked


def test_the_wording_that_is_followed_is_kept(tiny_llama, follows):
    tried = ("second person, adjective", "instruction, noun", "first person")
    choice = choose_wording(tiny_llama, QUERIES, EMOTIONS, wordings=tried, judges=JUDGE, writing=Writing(seed=3))
    assert choice.wording == "instruction, noun" and choice.templates == templates_of("instruction, noun", EMOTIONS)
    table = choice.table.set_index(["wording", "emotion"])
    assert list(choice.table.columns) == ["wording", "emotion", "following", "lo", "hi", "neutral", "p", "n"]
    assert len(table) == 3 * 2 and (table["n"] == 6).all() and (table["neutral"] == 0).all()
    assert table["following"].to_dict() == {
        (w, e): {"joy": 1.0, "awe": 0.5}[e] if w == "instruction, noun" else 0.0 for w in tried for e in EMOTIONS
    }
    assert tuple(table.loc[("instruction, noun", "awe"), ["lo", "hi"]]) == interval([1, 0, 1, 0, 1, 0])
    assert table.loc["instruction, noun"]["p"].to_dict() == {"joy": 2**-6, "awe": 2**-3}
    assert choice.not_followed == ("awe",), "three of six may be chance"
    told = "75% of the answers to 6 training questions show what was asked for. Not followed: awe (50% [19%, 81%], of"
    assert told in str(choice)
    prompts, options = follows[0]
    assert len(follows) == 1 and len(set(prompts)) == len(prompts) == 3 * 2 * 6 + 3 * 6, "equal prompts once"
    assert options == {"raw": True, "max_new_tokens": 60, "writing": Writing(seed=3)}


def test_what_is_not_followed_is_said(tiny_llama, follows):
    choice = choose_wording(tiny_llama, QUERIES, EMOTIONS, wordings="first person", judges=JUDGE)
    assert choice.not_followed == EMOTIONS
    assert "Not followed: joy (0% [0%, 39%], of neutral answers 0%), awe (0%" in str(choice)
    gloomy = FunctionJudge(lambda texts: np.eye(3)[[0] * len(texts)], (*EMOTIONS, "neutral"))  # all is joy to it
    choice = choose_wording(tiny_llama, QUERIES, EMOTIONS, wordings="instruction, noun", judges=gloomy)
    assert choice.not_followed == EMOTIONS, "neutral answers are read as joy as often"
    lost = FunctionJudge(lambda texts: np.full((len(texts), 3), np.nan), JUDGE.labels)
    choice = choose_wording(tiny_llama, QUERIES, EMOTIONS, wordings="instruction, noun", judges=lost)
    assert choice.table["following"].eq(0).all(), "what cannot be read is no joy, though that label stands first"


def test_what_is_followed_is_said(tiny_llama, follows):
    choice = choose_wording(tiny_llama, QUERIES, "joy", wordings="instruction, noun", judges=JUDGE)
    assert choice.not_followed == () and str(choice).endswith("asked for. Every emotion is followed.")


def test_few_situations_cannot_tell(tiny_llama, follows):
    choice = choose_wording(tiny_llama, QUERIES.head(4), EMOTIONS, wordings="first person", judges=JUDGE)
    assert choice.table["p"].isna().all() and choice.not_followed == ()
    assert str(choice).endswith("Fewer than 5 situations cannot tell which emotions are followed at all.")


def test_templates_of_a_choice_go_on(tiny_llama):
    options = {"max_new_tokens": 4, "judges": FunctionJudge(lambda texts: np.eye(3)[[0] * len(texts)], JUDGE.labels)}
    for wording in WORDINGS:
        choice = choose_wording(tiny_llama, QUERIES, EMOTIONS, wordings=[wording], **options)
        table = emolab.collect_responses(
            tiny_llama,
            QUERIES.head(2),
            emotions=EMOTIONS,
            max_new_tokens=4,
            writing=Writing(templates=choice.templates),
        )
        told = table.set_index("condition")["prompt"]
        assert "joy" in told["joy"].iloc[0], wording
        assert (told["awe"].iloc[0] != told["neutral"].iloc[0]) and "{" not in told["awe"].iloc[0], wording


def test_frames_are_the_same_for_neutral_and_emotion():
    """What an emotion's prompt adds to the neutral one names the emotion; the rest of the frame cancels."""
    for wording, pair in WORDINGS.items():
        if pair is None:
            assert templates_of(wording, EMOTIONS) is None
            continue
        neutral, told = (text.replace("{query}", " ").split() for text in pair)
        assert set(neutral) - {"person."} <= {*told, "person"} | {"person,"}, wording
        assert "{query}" in pair[0] and "{query}" in pair[1]
        assert "{adjective}" in pair[1] or "{noun}" in pair[1]


def test_own_wordings(tiny_llama, follows):
    own = {"mine": {"neutral": "{query}", "joy": "Answer with joy: {query}", "awe": "Answer with awe: {query}"}}
    choice = choose_wording(tiny_llama, QUERIES, EMOTIONS, wordings=own, judges=JUDGE)
    assert choice.wording == "mine" and choice.templates == own["mine"]
    assert follows[0][0][6] == render_prompts(tiny_llama, [QUERIES["query"][0]], "joy", templates=own["mine"])[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"queries": QUERIES.assign(split="heldout")}, "held out; choose a wording on training"),
        ({"wordings": ["shout"]}, "unknown wording 'shout'; expected some of 'second person, adj"),
        ({"wordings": {"mine": {"joy": "{query}"}}}, "'mine' has no text for neutral"),
        ({"wordings": {"mine": "Answer with joy."}}, "'mine' has no text for neutral"),
        ({"wordings": {}}, "no wording to try"),
        ({"emotions": ("neutral",)}, "no emotion beside neutral"),
        ({"emotions": ("joy", "envy"), "judges": JUDGE}, "cannot tell envy"),
        ({"writing": 0.5}, "writing is 0.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_refusals(tiny_llama, change, message):
    given = {"queries": QUERIES, "emotions": EMOTIONS} | change
    with pytest.raises(EmolabError, match=message):
        choose_wording(tiny_llama, given.pop("queries"), given.pop("emotions"), **given)
