"""Words, names of emotions, refusals."""

from __future__ import annotations

import pytest

from emolab.base.labels import EMOTIONS
from emolab.judges.words import affirmed, emotion_words, is_refusal, named, unnamed, words_of
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
