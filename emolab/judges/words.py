"""What a text says word by word: its words, whether it names an emotion, refuses to answer or repeats itself.

>>> from emolab.judges.words import is_refusal, named, words_of
>>> words_of("I don’t know, 我很高兴"), named("It saddened me.", "sadness"), is_refusal("As an AI, I have no feelings.")
(['i', "don't", 'know', '我', '很', '高', '兴'], True, True)

Refusals, negations and the endings of words are English.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable
from functools import cache

# Characters that are written in several ways, one for one: apostrophes, hyphens, full and half width.
_ALIKE = str.maketrans("’‘ʼ‛´`\u2032\u2010\u2011", "'''''''--")
_ALIKE |= {code: unicodedata.normalize("NFKC", chr(code)) for code in (*range(0xFF01, 0xFF5F), *range(0xFF66, 0xFF9E))}
# What may be written or left out within a word: soft hyphens, vowel points of Hebrew and Arabic, Arabic stretching.
_OPTIONAL = dict.fromkeys((0xAD, 0x640, *range(0x64B, 0x653), 0x670, *range(0x591, 0x5BE), 0x5BF, 0x5C1, 0x5C2, 0x5C7))
_OPTIONAL |= {0xFF9E: "\u3099", 0xFF9F: "\u309a"}  # the marks of half-width kana, which join their letter
# Scripts that put no space between words: Thai and Lao, Myanmar, Khmer, Tai scripts, kana, Han (and its extensions).
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
_UNSPACED += "\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaadf\uf900-\ufaff\U00020000-\U0003ffff"
_ONE_EMOJI = "[\u231a-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff][\ufe0f\U0001f3fb-\U0001f3ff]*"
_EMOJI = re.compile(f"[\U0001f1e6-\U0001f1ff]{{2}}|{_ONE_EMOJI}(?:\u200d{_ONE_EMOJI})*")
CLAUSE = re.compile(r"[.,;:!?…—。，！？；\n]+")
_NEGATIONS = frozenset(("not", "no", "never", "without", "hardly", "neither", "nor", "cannot", "nothing"))
_REACH = 3  # words behind a negation that it may deny: "not at all happy"
# See `is_loop`.
_LEAST_WORDS, _LOOP_REPETITION = 8, 0.5
_LEAST_BYTES, _LOOP_COMPRESSION = 24, 0.5

# Words of one family, where endings alone do not lead from a label to them.
_FAMILIES = [
    line.split()
    for line in (
        "anger angry angrier angriest angrily",
        "joy overjoyed",
        "sadness sadden saddens saddened saddening sadder saddest",
        "pride proud proudly prouder proudest",
        "shame ashamed",
        "hatred hate hates hated hating hateful hatefully",
        "grief grieve grieves grieved grieving grievous",
        "relief relieve relieves relieved relieving",
        "anxiety anxious anxiously anxiousness",
        "jealousy jealous jealously",
        "boredom bored boring bore bores",
        "confusion confuse confuses confused confusing",
        "gratitude grateful gratefully gratefulness",
        "nostalgia nostalgic nostalgically",
        "misery miserable miserably",
        "terror terrify terrifies terrified terrifying terrifyingly terrible terribly",
        "horror horrify horrifies horrified horrifying horrible horribly horrific",
        "panic panicked panicking panicky",
        "enthusiasm enthusiastic enthusiastically",
        "despair desperate desperately desperation",
        "regret regretted regretting",
        "contempt contemptuous contemptuously",
        "satisfaction satisfy satisfies satisfied satisfying",
        "passion passionate passionately",
        "affection affectionate affectionately",
        "suspicion suspicious suspiciously suspect suspects suspected",
        "curiosity curious curiously",
        "serenity serene serenely",
        "tranquility tranquillity tranquil tranquilly",
        "annoyance annoy annoys annoyed annoying annoyingly",
        "apathy apathetic apathetically",
        "ecstasy ecstatic ecstatically",
        "pleasure pleased pleasing pleasurable",
        "admiration admire admires admired admiring",
        "sympathy sympathetic sympathetically sympathise sympathize",
        "fear afraid",
    )
]
_ENDINGS = ("", *"s es d ed ing er est ly y ily ful fully fulness ness ous ously edly ingly".split())
_AFTER_E = "ed ing er est edly ingly y".split()  # behind a word whose last e falls: raging
_AFTER_Y = "ies ied ier iest ily iness ious iously".split()  # in place of a last y: envious

_MACHINE = (
    r"(?:ai|a\.i\.|artificial intelligence|(?:large )?language model|chat ?bot|robot|computer program|"
    r"(?:virtual|digital) assistant|machine learning model)"
)
_FEELINGS = (
    r"(?:human |real |true |actual |personal |physical |any |the |own )*"
    r"(?:feelings?|emotions?|consciousness|opinions?|preferences?|beliefs?|experiences?|(?:a )?body)"
)
_DO = (
    r"(?:assist|help (?:you|with)|answer|provide|fulfil|comply|share|discuss|create|generate|write|give|offer|engage|"
    r"support|recommend|tell you|respond|accommodate|complete|continue|do (?:that|this)|say|predict|access|browse)"
)
_REFUSALS = re.compile(
    "|".join(
        (
            rf"\bas an? (?:[\w-]+ ){{0,3}}{_MACHINE}\b",
            rf"\bi(?:'m| am) (?:just |only |simply |merely |really |actually |not a human,? but )*"
            rf"(?:an?|the) (?:[\w-]+ ){{0,3}}{_MACHINE}\b",
            rf"\bi(?:'m| am) \w+, an? (?:[\w-]+ ){{0,3}}{_MACHINE}\b",
            rf"\bi (?:don't|do not|cannot|can't|can not) (?:actually |really |truly )*(?:have|possess|experience|feel) "
            rf"{_FEELINGS}\b(?! (?:for|left|about|toward|towards)\b)",
            rf"\bi(?: lack|(?: am|'m) (?:not capable of|incapable of)) "
            rf"(?:feeling |having |experiencing )?{_FEELINGS}\b",
            r"\bi(?:'m| am) not (?:a )?(?:human|a (?:real )?person)\b",
            rf"\bi(?:'m| am) (?:so |very |really |truly )*sorry,? (?:but )?i (?:can't|cannot|can not|am unable to|"
            rf"am not able to|won't|will not)(?:[.!]| be able to\b| {_DO}\b)",
            rf"\bi(?:(?:'m| am) (?:unable|not able) to| can't| cannot| can not) {_DO}\b",
            rf"\bi (?:won't|will not) be able to {_DO}\b",
        )
    ),
    re.IGNORECASE,
)


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, as the lexicon and the measures of repetition count them.

    >>> words_of("'So it goes' - don’t ask. मुझे 高兴")
    ['so', 'it', 'goes', "don't", 'ask', 'मुझे', '高', '兴']

    Marks belong to the letter before them (vowel signs of Indian scripts); those that may be left out (of Arabic and
    Hebrew) are. Where a script puts no spaces between words, each letter counts as one, and in a text of emoji alone
    each emoji.
    """
    text = unicodedata.normalize("NFC", plain(text).translate(_OPTIONAL)).lower()
    words = (word.strip("'-\ufe0f\u200c\u200d") for word in _words().findall(text))
    return [word for word in words if word] or _EMOJI.findall(text)


@cache
def _words() -> re.Pattern[str]:
    marks, start = "\u200c\u200d", None  # joiners stand inside words, too
    for code in range(0x300, 0x20000):  # beyond lie no more than marks that choose a variant of a letter
        mark = unicodedata.category(chr(code))[0] == "M"
        if mark and start is None:
            start = code
        elif not mark and start is not None:
            marks, start = f"{marks}{chr(start)}-{chr(code - 1)}", None
    return re.compile(rf"[{_UNSPACED}][{marks}]*|(?:(?![{_UNSPACED}])[\w'{marks}-])+")


def plain(text: str) -> str:
    """A text in composed characters (NFC), of usual width and with straight apostrophes: as long as its NFC."""
    return unicodedata.normalize("NFC", text).translate(_ALIKE)


def affirmed(text: str) -> list[str]:
    """The words of a text without those that a negation denies: up to three behind it in its clause.

    >>> affirmed("I am not happy, but calm.")
    ['i', 'am', 'not', 'but', 'calm']
    """
    kept = []
    for clause in CLAUSE.split(text):
        denied = 0
        for word in words_of(clause):
            if word in _NEGATIONS or word.endswith("n't"):
                denied = _REACH + 1
            elif denied:
                denied -= 1
            if denied in (0, _REACH + 1):  # the negation itself is said
                kept.append(word)
    return kept


def emotion_words(label: str) -> frozenset[str]:
    """A label and its forms, lower case: what counts as naming the emotion, in this one place.

    >>> sorted(emotion_words("fear") & {"fear", "fearful", "afraid", "fearless", "scared"})
    ['afraid', 'fear', 'fearful']

    Simple endings of the label (and of what is left of -ness, -ment, -ation), and families such as anger, angry.
    "enjoy" does not name joy: it is said of meals and weather. Synonyms (furious, scared) name nothing either.
    """
    label = plain(label).casefold().strip()
    stems = {label}
    if label.endswith("ness") and len(label) > 6:
        stems |= {label[:-4], label[:-5] + "y"} if label[-5] == "i" else {label[:-4]}
    if label.endswith("ment") and len(label) > 7:
        stems.add(label[:-4])
    if label.endswith("ation") and len(label) > 8:
        stems.add(label[:-3] + "e")
    forms = {stem + end for stem in stems for end in _ENDINGS}
    forms |= {stem[:-1] + end for stem in stems if stem.endswith("e") for end in _AFTER_E}
    forms |= {stem[:-1] + end for stem in stems if stem.endswith("y") for end in _AFTER_Y}
    families = [family for family in _FAMILIES if stems & set(family)]
    return frozenset(forms.union(*families))


@cache
def _naming(labels: tuple[str, ...]) -> re.Pattern[str]:
    forms = {form for label in labels if is_latin(label) for form in emotion_words(label)}
    # What other languages do with endings is not known here: the label as it stands, anywhere.
    return pattern_of(forms, [plain(label).casefold().strip() for label in labels if not is_latin(label)])


def pattern_of(words: Iterable[str], anywhere: Iterable[str]) -> re.Pattern[str]:
    """What finds these as whole words, the longest first, and the others anywhere; case does not count."""
    longest_first = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    parts = [rf"(?<!\w)(?:{longest_first})(?!\w)"] if longest_first else []
    return re.compile("|".join([*parts, *map(re.escape, anywhere)]) or r"(?!)", re.IGNORECASE)


def is_latin(text: str) -> bool:
    """Whether a text has no letter of another script.

    >>> is_latin("Ärger!"), is_latin("喜び")
    (True, False)
    """
    return all(unicodedata.name(c, "").startswith("LATIN") for c in text if c.isalpha())


def named(text: str, label: str) -> bool:
    """Whether a text holds a label or a form of it (`emotion_words`); in other scripts than Latin, the label anywhere.

    >>> named("She answered angrily.", "anger"), named("I enjoyed it.", "joy")
    (True, False)
    """
    return bool(_naming((label,)).search(plain(text)))


def unnamed(text: str, labels: Iterable[str]) -> str:
    """A text in which no label and no form of one is left.

    >>> unnamed("Anger is a joyful thing.", ["anger", "joy"])
    'something is a something thing.'
    """
    labels = tuple(labels)
    return _naming(labels).sub("something", plain(text)) if labels else text


def is_refusal(text: str) -> bool:
    """Whether a text refuses to answer, or speaks as a machine that has no feelings.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal("I'm sorry to hear that, it must be hard.")
    (True, False)
    """
    return bool(_REFUSALS.search(plain(text)))


def distinct2(text: str) -> float:
    """Share of distinct ones among a text's pairs of neighbouring words; NaN without a pair.

    >>> distinct2("the dog the dog")
    0.666...
    """
    words = words_of(text)
    pairs = list(zip(words, words[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


def repetition(text: str) -> float:
    """Share of a text's words that repeat one of the four before; NaN without a word.

    >>> repetition("the dog the dog")
    0.5
    """
    words = words_of(text)
    return sum(w in words[max(0, i - 4) : i] for i, w in enumerate(words)) / len(words) if words else float("nan")


def compression(text: str) -> float:
    """Bytes of a text after zlib (level 9) over those before; NaN where it is empty. Prose about .6, loops below .3.

    >>> round(compression("no no no " * 30), 2)
    0.06
    """
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else float("nan")


def is_loop(text: str) -> bool:
    """Whether a text says one thing again and again: the one place where that is decided.

    >>> is_loop("so so so so so so so so so so"), is_loop("I'm so sorry to hear that. " * 4)
    (True, True)

    Either half of its words repeat one of the four before (of unsteered texts at most a fifth, of word soup .84 to .99
    do; this sees short circles), or it is half as large after zlib as prose of its length (this sees whole sentences
    that come back). Prose of n bytes is left with about .5 + 40 / n of them (measured: 100 bytes .87, 200 .72, 400 .62,
    1,000 .55, and no text below .9 of that). Fewer than eight words are too few to tell by the first, fewer than 24
    bytes by the second.
    """
    if len(words_of(text)) >= _LEAST_WORDS and repetition(text) >= _LOOP_REPETITION:
        return True
    size = len(text.encode())
    return size >= _LEAST_BYTES and compression(text) < _LOOP_COMPRESSION * (0.5 + 40 / size)
