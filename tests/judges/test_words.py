"""Words, names of emotions, refusals, repetition."""

from __future__ import annotations

import math
import zlib

import pytest

from emolab.base.labels import EMOTIONS
from emolab.judges.grammar import past_share, person_shares
from emolab.judges.words import (
    affirmed,
    compression,
    distinct2,
    emotion_words,
    is_loop,
    is_refusal,
    named,
    repetition,
    unnamed,
    words_of,
)
from tests.sentences import CHOSEN_ON, FRESH


def test_words_keep_their_marks_and_apostrophes():
    assert words_of("मुझे खुशी है") == ["मुझे", "खुशी", "है"]
    assert words_of("I don’t, 'really' - well-known rock'n'roll!") == [
        "i",
        "don't",
        "really",
        "well-known",
        "rock'n'roll",
    ]
    assert words_of("می\u200cخواهم") == ["می\u200cخواهم"], "a joiner stands inside a word"
    assert words_of("cafe\u0301") == words_of("caf\u00e9"), "composed or not"
    assert words_of("...") == words_of(" - ' ") == []


def test_letters_count_as_words_where_there_are_no_spaces():
    assert words_of("我很高兴 ok") == ["我", "很", "高", "兴", "ok"]
    assert words_of("とても") == ["と", "て", "も"] and words_of("มี") == ["มี"]


@pytest.mark.parametrize(
    "written, others",
    [
        ("جميل", ["جميـــل", "جَمِيل"]),  # stretched, with vowel points
        ("שלום", ["שָׁלוֹם"]),
        ("happy", ["ｈａｐｐｙ", "ＨＡＰＰＹ", "hap\u00adpy"]),
        ("don't", ["don’t", "don´t", "don＇t", "don`t", "don′t"]),
        ("well-known", ["well‐known", "well\u2011known", "well－known"]),
        ("행복", ["\u1112\u1162\u11bc\u1107\u1169\u11a8"]),  # in parts of syllables
        ("が", ["か\u3099"]),
        ("ガ", ["ｶﾞ"]),
        ("ครับ", ["ครับ"]),
    ],
)
def test_words_are_the_same_however_they_are_written(written, others):
    for other in others:
        assert words_of(f"({other})") == words_of(written) != [], other
    assert len(words_of(written)) == (3 if written == "ครับ" else 1)


def test_emoji_are_words_where_there_are_no_others():
    assert words_of("😀😀 ❤️ 👩‍👩‍👧 🇩🇪 👍🏽!") == ["😀", "😀", "❤️", "👩‍👩‍👧", "🇩🇪", "👍🏽"]
    assert words_of("So 😀") == ["so"]
    assert repetition("😀" * 40) == 39 / 40 and distinct2("😀" * 40) == 1 / 39 and is_loop("😀" * 40)


def test_what_a_negation_denies_is_not_affirmed():
    assert affirmed("I am not happy, but calm.") == "i am not but calm".split()
    assert affirmed("I don’t feel at all glad today") == "i don't glad today".split()
    assert affirmed("Not sad. Happy!") == ["not", "happy"]


@pytest.mark.parametrize(
    ("label", "forms", "others"),
    [
        ("anger", "anger angry angrily angered Angrier", "furious danger hunger anagram stranger"),
        ("disgust", "disgust disgusted disgusting disgustingly", "gusto gross"),
        ("fear", "fear fears fearful fearfully afraid feared", "fearless scared rear"),
        ("joy", "joy joyful joyous joyfully overjoyed", "enjoy enjoyed joystick happy"),
        ("sadness", "sad sadly sadness saddened sadder", "saddle sadist crusade"),
        ("happiness", "happy happily happier happiness", "hap happen"),
        ("rage", "rage raged raging rages", "rag rags raga courage"),
        ("envy", "envy envious envied", "env"),
        ("excitement", "excited exciting excitement", "exit"),
        ("frustration", "frustrated frustrating frustration", "frost"),
        ("guilt", "guilt guilty guiltily", "gilt"),
        ("mixed feelings", "mixed feelings", "mixed feeling"),
    ],
)
def test_forms_of_a_label_name_it(label, forms, others):
    for word in [forms] if " " in label else forms.split():
        assert named(f"It was ({word}).", label), word
    for word in [others] if " " in label else others.split():
        assert not named(f"It was ({word}).", label), word


def test_labels_of_other_scripts_are_looked_for_anywhere():
    assert named("とても喜びです", "喜び") and not named("とても悲しい", "喜び")
    assert named("Ärger!", "ärger") and unnamed("Voll Freude", ["Freude"]) == "Voll something"


def test_no_name_is_left():
    text = "Anger makes me angry; joyful Joy, and I’m sad."
    left = unnamed(text, EMOTIONS)
    assert left == "something makes me something; something something, and I'm something."
    assert not any(named(left, label) for label in EMOTIONS) and unnamed(text, []) == text
    assert "angry" in emotion_words("anger") and "furious" not in emotion_words("anger")


@pytest.mark.parametrize(
    "text",
    [
        "As an AI, I don't have feelings.",
        "As a large language model, I have no opinion.",
        "As a Chatbot, I don't actually have any subjective views.",
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I can’t.",
        "I'm just a computer program, so ask somebody else.",
        "I'm SmolLM, an AI assistant.",
        "I do not have personal experiences or emotions.",
        "I don't have feelings",
        "I'm not capable of feeling emotions.",
        "I'm unable to answer.",
        "Unfortunately, I cannot provide medical advice.",
    ],
)
def test_refusals_are_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that.",
        "I'm so sorry, I can't believe this happened!",
        "I'm sorry, but I can't stop crying.",
        "I can't help but smile.",
        "I don't have feelings for him anymore.",
        "I don't have time, and I am not a morning person.",
        "As an artist I paint; as an aide I carry.",
        "The program was fun, and I'm a teacher.",
        *(t for group in (CHOSEN_ON, FRESH) for label in EMOTIONS for t in group[label]),
    ],
)
def test_what_people_say_is_no_refusal(text):
    assert not is_refusal(text)


# Repetition and loops


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("I walked and sat on the bed. I walk on, and he was here.", 3 / 4),
        ("We press on; a hundred red lamps shake.", 0),
        ("I’m so focused. I’ve lost count, it’s been closed.", 0),  # participles behind am, have and is
        ("I didn't want to feel it, he couldn't help us move.", 1),  # did, could; infinitives are of no tense
        ("The thought of a walk, my baked bread, a well-loved bed.", math.nan),  # nouns and what stands before them
        ("She put it down.", math.nan),
        ("That is how he walked", 1 / 2),  # a subject between: no participle of "is"
    ],
)
def test_tense_is_told_where_it_can_be(text, share):
    assert past_share(text) == pytest.approx(share, nan_ok=True)


def test_persons_are_counted_in_short_forms_too():
    assert person_shares("I'm glad we met you, yourself.") == (2 / 7, 2 / 7)
    assert person_shares("It's here.") == (0, 0) and math.isnan(person_shares("...")[0])
    assert math.isnan(person_shares("我很高兴, my dog")[1]) and person_shares("my dog 高")[0] == 1 / 3


def test_repetition_and_distinct_pairs():
    nan = float("nan")
    # pairs of "the dog the dog": (the dog), (dog the), (the dog); "a ... a" with four words between is no repetition
    table = [
        ("a b c d", 1, 0), ("a a a", 1 / 2, 2 / 3), ("the dog the dog", 2 / 3, 1 / 2), ("a b c d e a", 1, 0),
        ("Dog, dog!", 1, 1 / 2), ("one", nan, 0), ("", nan, nan), ("...", nan, nan),
        ("我很高兴" * 40, 4 / 159, 156 / 160),
    ]  # fmt: skip
    for text, pairs, again in table:
        assert [distinct2(text), repetition(text)] == pytest.approx([pairs, again], nan_ok=True), text


def test_loops_compress_and_prose_does_not():
    prose = "The library opens at nine, and its three floors hold maps, novels and records."
    assert compression("I am so sad. " * 20) < 0.15 < 0.7 < compression(prose) and math.isnan(compression(""))
    for text in (prose, "é"):
        assert compression(text) == len(zlib.compress(text.encode(), 9)) / len(text.encode())


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
    assert is_loop(text)


@pytest.mark.parametrize("text", [*PROSE, "", "...", *(t for ts in FRESH.values() for t in ts)])
def test_prose_is_no_loop(text):
    assert not is_loop(text)
