"""Where in a text emotions are named or said in other words, for those who read it.

>>> from emolab.judges.feeling_words import emotion_spans
>>> emotion_spans("I am joyful, she is furious.", ("anger", "joy"))
[(5, 11, 'joy'), (20, 27, 'anger')]

Nothing is scored with these lists: they find words, in English, and know neither negation nor irony.
"""

from __future__ import annotations

import re
from functools import cache

from emolab.judges.words import emotion_words, is_latin, pattern_of, plain

# Words that say an emotion without its name. Those that mostly say something else (love, miss, blue) are left out.
FEELING_WORDS = {
    emotion: frozenset(words.split())
    for emotion, words in {
        "anger": (
            "furious furiously fury rage rages raged raging enraged outrage outraged outrageous irate livid mad "
            "maddening irritated irritating irritation annoyed annoying annoyance frustrated frustrating frustration "
            "resent resented resentful resentment hate hated hates hateful hatred hostile hostility fuming seething "
            "exasperated infuriated infuriating indignant indignation wrath"
        ),
        "disgust": (
            "gross nasty revolting revolted revulsion repulsive repulsed repulsion repulsing sickened sickening "
            "nausea nauseous nauseated nauseating filth filthy foul vile rotten rancid putrid stench stink stinks "
            "stinking gagging gagged loathe loathed loathing loathsome abhorrent slimy"
        ),
        "fear": (
            "scare scared scares scaring scary terrified terrifying terror terrors frighten frightened frightening "
            "fright dread dreaded dreading anxious anxiously anxiety panic panicked panicking horror horrors "
            "horrified horrifying nervous nervously worry worried worrying worries trembling trembled alarmed "
            "petrified uneasy menacing eerie nightmare nightmares"
        ),
        "joy": (
            "happy happier happiest happily happiness glad gladly delight delighted delightful cheer cheerful "
            "cheerfully bliss blissful elated elation ecstatic ecstasy thrilled thrilling excited excitedly "
            "excitement exciting pleased pleasure wonderful wonderfully laugh laughed laughing laughter smile smiled "
            "smiles smiling merry jubilant euphoric"
        ),
        "sadness": (
            "sorrow sorrows sorrowful grief grieve grieved grieving unhappy unhappiness miserable misery lonely "
            "loneliness mourn mourned mourning weep weeping wept cry cried cries crying tears tearful sob sobbed "
            "sobbing heartbroken heartbreaking heartbreak despair despairing hopeless hopelessness depressed "
            "depressing depression gloom gloomy melancholy melancholic"
        ),
    }.items()
}


def emotion_spans(text: str, labels: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """(start, end, label) of each word of a text that says one of these emotions, in order.

    >>> emotion_spans("No grief.", ("sadness",)), emotion_spans("No grief.", ("sadness", "grief"))
    ([(3, 8, 'sadness')], [(3, 8, 'grief')])

    A label and its forms (`emolab.judges.words.emotion_words`), and for the five emotions the words of `FEELING_WORDS`.
    In other scripts than Latin, the label anywhere. Places count the characters of the text in composed form (NFC).
    """
    pattern, label_of = _speaking(labels)
    matches = ((match.span(), label_of.get(match[0].casefold())) for match in pattern.finditer(plain(text)))
    return [(*span, label) for span, label in matches if label is not None]  # a dotless i matches i, and is none


@cache
def _speaking(labels: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    names = {label: emotion_words(label) for label in labels if is_latin(label)}
    label_of = {form: label for label in reversed(names) for form in names[label]}
    for label in names:
        label_of = {word: label for word in FEELING_WORDS.get(label, ())} | label_of
    anywhere = {plain(label).casefold().strip(): label for label in labels if label not in names}
    return pattern_of(label_of, anywhere), label_of | anywhere
