"""Words that say an emotion are found where they stand, and each says one."""

from __future__ import annotations

from itertools import combinations

import pytest

from emolab.base.labels import EMOTIONS
from emolab.judges.feeling_words import FEELING_WORDS, emotion_spans
from emolab.judges.words import emotion_words


def said(text: str, *labels: str) -> list[tuple[str, str]]:
    return [(text[start:end], label) for start, end, label in emotion_spans(text, labels or EMOTIONS)]


def test_names_forms_and_other_words_are_found_in_order():
    assert said("Angrily I wept; JOY, and fear!") == [
        ("Angrily", "anger"),
        ("wept", "sadness"),
        ("JOY", "joy"),
        ("fear", "fear"),
    ]
    assert said("I’m scared of the don’t-be-sad sign") == [("scared", "fear"), ("sad", "sadness")]


@pytest.mark.parametrize(
    "text", ["", "joystick, enjoyment", "A grosser sum of ages.", "I loved the blue sky", "afraıd"]
)
def test_parts_of_words_and_other_words_are_not(text):
    assert said(text) == []


def test_only_labels_that_are_asked_for_and_a_name_before_a_list():
    assert said("grief and rage", "anger") == [("rage", "anger")]
    assert said("grief and rage", "sadness", "grief") == [("grief", "grief")]
    assert said("rage", "rage", "anger") == said("rage", "anger", "rage") == [("rage", "rage")]
    assert said("joy") == [("joy", "joy")] and emotion_spans("joy", ()) == []


def test_labels_of_other_scripts_stand_anywhere():
    assert said("彼は喜びに満ちた。joy", "喜び", "joy") == [("喜び", "喜び"), ("joy", "joy")]


def test_no_word_says_two_emotions_and_none_is_the_name_of_another():
    words = {label: emotion_words(label) | FEELING_WORDS[label] for label in EMOTIONS}
    for one, other in combinations(EMOTIONS, 2):
        assert not words[one] & words[other]
    assert set(FEELING_WORDS) == set(EMOTIONS)
    assert all(word == word.lower() and word.isalpha() for group in FEELING_WORDS.values() for word in group)
