"""The toy model of these tests: its grammar, its tokenizer, its training, and the weights where they lie."""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from emolab import load_model
from emolab.base.labels import EMOTIONS, NEUTRAL
from emolab.models.prompts import encode, instruction, render_prompts
from tests.mini import QUERIES, WEIGHTS, corpus, mini_lexicon, queries, tokenizer
from tests.mini import train as training
from tests.mini.corpus import INTENSITY, answer, emotion_words, example, frames, lexicon, topics

pytestmark = pytest.mark.slow  # of a fixture that stays as it is, and of nothing that emolab does
HELDOUT = {t.name for t in topics() if t.heldout}


def with_frames(draw: Iterable) -> list[tuple]:
    """(sentence frames, text) of each text that `draw` writes."""
    seen: list[str] = []
    write, found = corpus.Writer.sentence, []

    def recorded(self, frame, *state):
        seen.append(frame)
        return write(self, frame, *state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus.Writer, "sentence", recorded)
        for text in draw:
            found.append((tuple(seen), text))
            seen.clear()
    return found


@pytest.fixture(scope="module")
def drawn_with_frames() -> list[tuple[tuple[str, ...], corpus.Example]]:
    rng = random.Random(1)
    return with_frames(example(rng) for _ in range(20_000))


@pytest.fixture(scope="module")
def drawn(drawn_with_frames) -> list[corpus.Example]:
    return [e for _, e in drawn_with_frames]


@pytest.fixture(scope="module")
def tok():
    return tokenizer.build()


def whole(e: corpus.Example) -> str:
    return " ".join(filter(None, (e.system, e.user, e.answer)))


def names(text: str, words: set[str]) -> set[str]:
    return words & set(re.findall(r"[a-z]+", text.lower()))


# Its lexicon


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


# Grammar


def test_topics_are_many_and_distinct():
    assert len(topics()) >= 60 and len(HELDOUT) >= 12
    assert len({t.name for t in topics()}) == len(topics())
    lines = [x for x in (corpus.GRAMMAR / "topics.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert len(lines) == len(topics()), "a line of topics.txt was not understood"
    for t in topics():
        assert len(set(t.parts)) >= 5 and len(set(t.acts)) >= 3 and t.name not in t.parts, t


def test_every_emotion_fills_every_slot():
    slots = {e: {s for s in lexicon()[e] if s != "word"} for e in (*EMOTIONS, NEUTRAL)}
    assert set(lexicon()) == set(slots) and len({frozenset(s) for s in slots.values()}) == 1
    for e in EMOTIONS:
        assert lexicon()[e]["word"][0] == e  # the instruction's own word comes first
        assert len(emotion_words()[e]) > 50
    used = {
        m for group in frames().values() for items in group.values() for x in items for m in re.findall(r"{(\w+)", x)
    }
    assert used <= slots[NEUTRAL] | {"t", "p", "q", "do", "at", "when", "base", "word"}


def test_all_kinds_and_emotions_are_drawn(drawn):
    kinds = Counter(e.kind for e in drawn)
    for kind, share in corpus.KINDS.items():
        assert kinds[kind] / len(drawn) == pytest.approx(share, abs=0.015), kind
    emotions = Counter(e.emotion for e in drawn if e.emotion != NEUTRAL)
    assert set(emotions) == set(EMOTIONS) and max(emotions.values()) < 1.1 * min(emotions.values())
    assert all(e.emotion == NEUTRAL for e in drawn if e.kind == "plain")


def test_same_seed_same_text():
    first, second, other = ([example(r) for _ in range(50)] for r in map(random.Random, (3, 3, 4)))
    assert first == second != other


def test_heldout_topics_and_phrasings_occur_only_in_plain_texts_that_were_asked_for(drawn):
    """Were they plain without being asked, a model would learn that these topics are never emotional."""
    opening = [re.escape(q).split(r"\{t\}")[0] for q in frames()["query"]["heldout"]]
    phrased = re.compile("|".join(opening))
    plain = Counter()
    for e in drawn:
        if e.system in frames()["instruction"]["plain"]:
            assert e.kind == "plain"
            plain["topic"] += e.topic in HELDOUT
            plain["phrasing"] += bool(phrased.search(e.user))
        else:
            assert not phrased.search(e.user) and not names(whole(e), HELDOUT), e
    assert plain["topic"] > 100 and plain["phrasing"] > 100  # else the test would say nothing


def test_easy_texts_are_about_the_grammars_own_topics():
    rng = random.Random(8)
    own = {t.name for t in topics()}
    assert all(example(rng, easy=True).topic in own for _ in range(300))
    assert any(example(rng).topic not in own for _ in range(300))


def test_no_filler_or_frame_names_a_heldout_topic():
    texts = [x for slots in lexicon().values() for fillers in slots.values() for x in fillers]
    texts += [x for group in frames().values() for items in group.values() for x in items]
    assert not names(" ".join(texts), HELDOUT)


def test_frames_do_not_depend_on_emotion():
    """One seed chooses the same sentences whatever fills them."""
    plans = [((), None)] + [((e,), i) for e in EMOTIONS for i in INTENSITY]
    for seed in range(30):
        n, story = 3 + seed % 3, seed % 5 == 0
        texts = (
            answer(random.Random(seed), topics()[seed], [plan] * n, past=seed % 2 == 0, story=story) for plan in plans
        )
        chosen, written = zip(*with_frames(texts), strict=True)
        assert len(set(chosen)) == 1 and len(chosen[0]) == n
        assert len(set(written)) > len(EMOTIONS)


def test_neutral_and_emotional_answers_use_the_same_frames_as_often(drawn_with_frames):
    counts = defaultdict(Counter)
    stories = {f for items in frames()["story"].values() for f in items}
    for used, e in drawn_with_frames:
        if not stories & set(used):  # stories have openings of their own, and are emotional more often by design
            counts[e.emotion].update(used)
    known = {f for group in ("open", "body", "close") for items in frames()[group].values() for f in items}
    for emotion in EMOTIONS:
        table = [[counts[e][f] for f in sorted(known)] for e in (emotion, NEUTRAL)]
        assert min(map(min, table)) > 0, emotion
        assert chi2_contingency(table).pvalue > 1e-3, emotion  # 49 frames, more than 10,000 sentences each


def test_intensity_raises_the_share_of_emotion_words():
    for emotion in EMOTIONS:
        words, share = emotion_words()[emotion], []
        for intensity in ("a little", None, "great"):
            rng, text = random.Random(0), []
            for _ in range(300):
                plan = [((emotion,), intensity)] * 4
                text += re.findall(r"[a-z'-]+", answer(rng, rng.choice(topics()), plan, past=True).lower())
            share.append(np.mean([w in words for w in text]))
        assert 0.03 < share[0] < 0.75 * share[1] and share[1] < 0.9 * share[2], (emotion, share)


def test_plain_answers_hold_no_emotion_word(drawn):
    every = set().union(*emotion_words().values())
    assert not [e for e in drawn if e.kind == "plain" and names(e.answer, every)]


def test_instructed_answers_hold_words_of_their_own_emotion_only(drawn):
    for e in drawn:
        if e.kind == "instructed":
            for other in set(EMOTIONS) - {e.emotion}:
                assert not names(e.answer, emotion_words()[other]), (other, e)


def test_texts_are_clean_sentences(drawn):
    for e in drawn:
        for text in filter(None, (e.system, e.user, e.answer)):
            assert text == " ".join(text.split()) and text.isascii(), text
            assert not re.search(r"[{}|]|\b[A-Z]{2,}\b", text), text  # no marker is left
            assert not re.search(r" [,.!?;:]|[,;:][,.!?;:]|[.!?]{2}", text), text
            assert re.search(r'[.!?]"?$', text), text
            assert not re.search(r'(^|[.!?] )"?[a-z]', text), text  # sentences start with capitals
            assert text.count('"') % 2 == 0, text
            assert not re.search(r"\b(\w+) \1\b", text), text


def test_a_and_an_agree(drawn):
    vowel = re.compile(r"\b[Aa] (?:[aeio]|hour|un(?!i))\w*")
    consonant = re.compile(r"\b[Aa]n (?:[^aeiouh\W]|uni|h(?!our))\w*")
    text = "\n".join(whole(e) for e in drawn)
    assert not vowel.findall(text) and not consonant.findall(text)
    assert len(re.findall(r"\b[Aa]n ", text)) > 1000


def test_bundled_queries_are_those_of_the_grammar():
    data = json.loads(QUERIES.read_text(encoding="utf-8"))
    assert data == queries.build(), "stale: python -m tests.mini.queries"
    assert {q["situation"] for q in data["queries"] if q["split"] == "heldout"} == HELDOUT


# Tokenizer


def test_vocabulary_is_large_enough_and_every_id_has_a_token(tok):
    vocab = tok.get_vocab()
    types = {w.strip("▁").lower() for w in vocab if re.fullmatch(r"▁?[A-Za-z][A-Za-z'-]+", w)}
    assert len(types) >= 1500
    assert sorted(vocab.values()) == list(range(len(tok)))
    assert [tok.pad_token_id, tok.bos_token_id, tok.eos_token_id] == [0, 1, 2]  # as in the model's config


def test_texts_survive_with_and_without_a_leading_space(tok, drawn):
    for e in drawn[:1000]:
        ids = tok(e.answer, add_special_tokens=False).input_ids
        assert tok.decode(ids) == e.answer
        assert tok(" " + e.answer, add_special_tokens=False).input_ids == ids
        assert tok.decode(tok(whole(e)).input_ids, skip_special_tokens=True) == whole(e)


@pytest.mark.parametrize(
    "text",
    [
        "Xylophones buzz.", "parks and recreation", "Don't! It's 2024, isn't it?", "a-b 'quoted' (x) #1 ##2 50%",
        "I", "?", "THE PARK", "strawberry-flavoured ice-cream", "x" * 60,
    ],
)  # fmt: skip
def test_unknown_words_are_spelled_and_survive(tok, text):
    ids = tok(text, add_special_tokens=False).input_ids
    assert tok.unk_token_id not in ids and tok.decode(ids) == text
    assert tok(" " + text, add_special_tokens=False).input_ids == ids


@settings(max_examples=200, deadline=None)
@given(st.text(string.ascii_letters + string.digits + string.punctuation.replace("<", "") + " ", max_size=60))
def test_any_ascii_text_survives_up_to_spaces(tok, text):
    text = " ".join(text.split())
    ids = tok(text, add_special_tokens=False).input_ids
    assert tok.decode(ids) == text


def test_white_space_is_one_space_and_other_scripts_are_unknown(tok):
    assert tok("The  park\n is").input_ids == tok("The park is").input_ids
    assert tok.unk_token_id in tok("café").input_ids


def test_every_word_of_the_grammar_is_one_token(tok, drawn):
    vocab = tok.get_vocab()
    unseen = random.Random("other texts than the vocabulary was drawn from")
    for e in [*drawn[:3000], *(example(unseen) for _ in range(3000))]:
        text = whole(e)
        tokens = tok.convert_ids_to_tokens(tok(text, add_special_tokens=False).input_ids)
        assert not [t for t in tokens if t.startswith("##") or t == "<unk>"], text
        assert [t.strip("▁") for t in tokens] == re.findall(r"[A-Za-z][A-Za-z'-]*|[^A-Za-z\s]", text)
    for topic in topics():
        for word in " ".join((topic.name, *topic.parts, *topic.acts)).split():
            assert f"▁{word}" in vocab, word


@pytest.mark.parametrize("emotion", EMOTIONS)
@pytest.mark.parametrize("intensity", list(INTENSITY))
def test_the_packages_instruction_is_in_the_models_words(tok, emotion, intensity):
    text = instruction(emotion, intensity)
    tokens = tok.tokenize(text)
    assert [t.strip("▁") for t in tokens] == [*text[:-1].split(), "."]
    assert tok.decode(tok(text, add_special_tokens=False).input_ids) == text


def test_instructions_of_training_hold_the_packages_wording(drawn):
    told = {e.system for e in drawn if e.kind == "instructed"}
    assert {instruction(e, i) for e in EMOTIONS for i in INTENSITY} <= told


def test_chat_template(tok):
    turns = [
        {"role": "system", "content": "Answer with joy."},
        {"role": "user", "content": "How was the park?"},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "And the lake?"},
    ]
    text = tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<bos><|system|>Answer with joy.<|user|>How was the park?<|assistant|>Fine.<eos>"
        "<|user|>And the lake?<|assistant|>"
    )
    ids = tok(text, add_special_tokens=False).input_ids
    assert ids[0] == tok.bos_token_id and ids.count(tok.bos_token_id) == 1
    roles = [t for t in tok.convert_ids_to_tokens(ids) if t.startswith("<|")]
    assert roles == ["<|system|>", "<|user|>", "<|assistant|>", "<|user|>", "<|assistant|>"]
    assert tok("Hello.").input_ids.count(tok.bos_token_id) == 1 and tok.padding_side == "left"
    bare = tok.apply_chat_template(turns[:2], tokenize=False)
    assert bare.endswith("park?")


# Training


def test_labels_cover_the_answer_and_its_end_only(tok, drawn):
    rows = training.to_ids(tok, drawn[:20])
    ids, labels = training.collate(rows)
    for e, (row, start), got, label in zip(drawn, rows, ids, labels, strict=False):
        assert row.count(tok.bos_token_id) == 1 and row[-1] == tok.eos_token_id
        assert tok.decode(row[start:], skip_special_tokens=True) == e.answer
        assert tok.convert_ids_to_tokens(row[start - 1]) == "<|assistant|>"
        assert label[label != -100].tolist() == row[start:] and (label[:start] == -100).all()
        assert got[: len(row)].tolist() == row and (got[len(row) :] == tok.pad_token_id).all()


def test_training_text_is_what_the_pipeline_sends(tiny_mini, tok):
    """An instructed example and `render_prompts` give the same ids."""
    model, _ = tiny_mini
    e = corpus.Example("Answer with joy.", "How was the park?", "Fine.", "joy", "instructed", "park")
    (row, start), prompts = training.to_ids(tok, [e])[0], render_prompts(model, [e.user], "joy")
    assert encode(model, prompts, [e.answer]).input_ids[0].tolist() == row[:-1]
    assert encode(model, prompts).input_ids[0].tolist() == row[:start]


def test_learning_rate():
    rates = [training.learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == 1 / 200 and rates[199] == rates[700] == 1.0 and rates[850] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01 and min(rates) >= 0


STEPS, CHUNK = 10, 2  # five chunks; a checkpoint after the fourth


@pytest.fixture
def small(monkeypatch, tok):
    """Training of a tiny model on tiny chunks."""
    monkeypatch.setattr(training, "CHUNK", CHUNK)
    monkeypatch.setattr(training, "build", lambda: tok)
    monkeypatch.setattr(training, "new_model", partial(training.new_model, d_model=16, n_layers=2, n_heads=2))
    monkeypatch.setattr(training, "validation", partial(training.validation, n=16))


def weights(folder) -> dict[str, torch.Tensor]:
    return training.load_file(folder / "checkpoint.safetensors")


@pytest.mark.parametrize("muon", [True, False])
def test_killed_and_resumed_equals_undisturbed(small, monkeypatch, tmp_path, muon):
    run = partial(training.train, steps=STEPS, batch=2, muon=muon, export_to=None)
    last = run(out=tmp_path / "whole")
    assert last["step"] == STEPS and np.isfinite(last["loss"])

    draw = training.chunk

    def killed(tok, index, **options):
        if index == 4:
            raise KeyboardInterrupt
        return draw(tok, index, **options)

    monkeypatch.setattr(training, "chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path / "cut")
    after_kill = weights(tmp_path / "cut")
    indices = []
    monkeypatch.setattr(training, "chunk", lambda tok, index, **o: (indices.append(index), draw(tok, index, **o))[1])
    resumed = run(out=tmp_path / "cut")
    assert indices == [4]  # it went on, it did not start anew
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert expected.keys() == got.keys()
    assert [k for k in expected if not torch.equal(expected[k], got[k])] == []
    assert any(not torch.equal(after_kill[k], got[k]) for k in got if k.startswith("model."))
    assert {**resumed, "tokens": 0} == {**last, "tokens": 0}  # tokens are counted from the last start and scaled
    rows = [(tmp_path / d / "train_log.csv").read_text().splitlines() for d in ("whole", "cut")]
    assert len(rows[0]) == len(rows[1]) == 3  # head, the checkpoint, the end


def test_another_seed_trains_another_model(small, tmp_path):
    for seed in (0, 1):
        training.train(steps=CHUNK, batch=2, seed=seed, out=tmp_path / str(seed), export_to=None)
    a, b = weights(tmp_path / "0"), weights(tmp_path / "1")
    assert not torch.equal(a["model.lm_head.weight"], b["model.lm_head.weight"])


@pytest.fixture(scope="module")
def tiny_mini(tmp_path_factory, tok):
    """A tiny untrained model of the mini's make, exported and loaded: (emolab Model, the model before export)."""
    folder = tmp_path_factory.mktemp("mini")
    model = training.new_model(len(tok), d_model=16, n_layers=2, n_heads=2)
    training.export(model, tok, folder)
    return load_model(folder), model


def test_export_loads_and_gives_the_same_logits(tiny_mini, tok):
    loaded, trained = tiny_mini
    batch = encode(loaded, render_prompts(loaded, ["How was the park?"], "joy"), ["It was wonderful."])
    assert batch.input_ids[0].tolist().count(tok.bos_token_id) == 1
    with torch.inference_mode():
        expected = trained(batch.input_ids).logits
        for got in (loaded.hf(batch.input_ids).logits, loaded(batch.input_ids)):
            # fp16 keeps 11 bits: each weight is off by up to 2**-12 of itself, the logits by a few times that
            torch.testing.assert_close(got, expected, rtol=0, atol=4 * 2**-11 * expected.abs().max().item())
    assert loaded.eos_ids == [tok.eos_token_id] and loaded.start == "<bos>" and loaded.tokenizer.chat_template
    assert loaded.tokenizer.get_vocab() == tok.get_vocab()


# Bundled weights


def test_bundled_weights_load_and_speak(tok):
    model = load_model(WEIGHTS)
    assert model.name == "weights" and 4 <= model.n_layers <= 8 and 4 <= model.n_heads <= 8
    assert model.tokenizer.get_vocab() == tok.get_vocab(), "weights of another grammar: make mini"
    assert model.hf.config.vocab_size == len(tok) and model.eos_ids == [tok.eos_token_id]
    ids = encode(model, render_prompts(model, ["Tell me about the park."], "joy")).input_ids
    text = model.tokenizer.decode(model.hf.generate(ids, max_new_tokens=60, do_sample=False)[0, ids.shape[1] :])
    assert text.endswith("<eos>") and names(text, {"park"})


def test_bundled_weights_are_small_and_the_card_names_them():
    files = [f for f in WEIGHTS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 20 * 2**20
    card = WEIGHTS / "README.md"
    if not card.exists():
        pytest.skip("no model card yet")
    assert load_model(WEIGHTS).fingerprint in card.read_text(encoding="utf-8")
