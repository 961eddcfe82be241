"""The tense and the person of an English text, by rules without a tagger.

>>> past_share("I walked home. I am tired."), person_shares("I'm glad. Are you?")
(0.5, (0.2, 0.2))
"""

from __future__ import annotations

import re

from emolab.judges.words import CLAUSE, is_latin, plain, words_of

# Tense without a tagger (`past_share`). Forms that are past and present alike (put, set, read) tell nothing.
_PAST = frozenset(
    "was were had did went came took stood sat saw knew told said ran lay felt heard held found kept left met ate "
    "began bent bled bore bought broke brought built caught clung crept could drank drew drove fed fell flew flung "
    "forgot froze gave got grew hid hung laid led leapt lit lost made meant paid rang rode sang sank sent shone shook "
    "shot slept slid smelt sold spat spoke spun stank stole struck stuck swam swept swore swung taught tore thought "
    "threw understood woke wore wept won wound wrote became chose dealt dug dreamt fled forgave learnt overcame "
    "overheard arose awoke sought spent sprang stung strode withdrew burnt misunderstood rose".split()
)
_NO_VERBS = frozenset("bed hundred indeed naked need red sacred shed shred speed striped".split())
_PRESENT = frozenset(
    "am are is has have do does can will feel feels think thinks know knows want wants need needs mean means remember "
    "remembers see sees say says seem seems believe believes hope hopes love loves hate hates understand understands "
    "imagine imagines wonder wonders appreciate appreciates guess try tries keep keeps make makes give gives get gets "
    "take takes go goes come comes look looks find finds tell tells talk talks sit sits stand stands walk walks live "
    "lives run runs start starts use uses ask asks bring brings become becomes happen happens hear hears hold holds "
    "enjoy enjoys wish wishes speak speaks write writes work works continue continues consider learn grow grows lose "
    "choose realize realizes realise wait waits smell smells begin begins help helps abandons aches arrives babble "
    "bang bellow blames blows calls carry charges clap clings close closes complain count coughs crawl creak creaks "
    "crouch cry curse dance dares draw drives drips drop drops fill fills flickers floats floods gag gasp glitters "
    "glows groans hammer hang hangs heave hop howl hug jeer jump jumps kick knock lasts laugh leads lean leap leave "
    "lets lie lifts lurches miss move moves open opens order play plays press pull pulls pours raps refuse retch "
    "rises roar roll rots saws scream search sends shake shakes shout shriek shudder sing skip slam slide slides "
    "smirks sneezes spill spit splashes squeal squeals stay stays step steps stings swear sweep swing tap taps taste "
    "tear throb throw touches tramples tremble tumble turn turns wakes watch water weep whirl wipe yell".split()
)
_NOUNS_FOLLOW = frozenset("a an the my your his her its our their no every any some each".split())
_INFINITIVES_FOLLOW = frozenset("to do does did can could will would shall should may might must let help".split())
_PARTICIPLES_FOLLOW = frozenset(
    "am is are was were be been being have has had having get gets got getting feel feels felt feeling".split()
)
_SUBJECTS = frozenset("i he she it we you they who that".split())
_FIRST_PERSON = frozenset("i me my mine myself we us our ours ourselves".split())
_SECOND_PERSON = frozenset("you your yours yourself yourselves".split())
_SHORT = [
    (re.compile(pattern, re.IGNORECASE), full)
    for pattern, full in (
        (r"\bcan't\b", "can not"),
        (r"\bwon't\b", "will not"),
        (r"n't\b", " not"),
        (r"'m\b", " am"),
        (r"'re\b", " are"),
        (r"'ve\b", " have"),
        (r"'ll\b", " will"),
        (r"'d\b", " would"),
        (r"\b(it|he|she|that|there|here|what|who|how|where)'s\b", r"\1 is"),
    )
]


def past_share(text: str) -> float:
    """Share of past forms among the verbs of an English text whose tense can be told; NaN without one.

    >>> past_share("I walked home. I'm so tired, and I want to sleep.")
    0.333...

    A rule without a tagger: past is a listed form (was, felt) or a word in -ed, present a listed one (is, feel). Left
    out are infinitives (to feel, couldn't help), participles (was focused, have lost), nouns (the thought) and forms
    that are both (put). It misses verbs that are not listed, and takes other words in -ed for verbs.
    """
    past = present = 0
    for clause in CLAUSE.split(_in_full(text)):
        words = words_of(clause)
        for i, word in enumerate(words):
            before = words[max(0, i - 2) : i]
            if before and before[-1] in _NOUNS_FOLLOW:
                continue
            if word in _PAST or (word.endswith("ed") and word not in _NO_VERBS and "-" not in word):
                participle = _PARTICIPLES_FOLLOW & set(before) and before[-1] not in _SUBJECTS
                past += not participle
            elif word in _PRESENT:
                infinitive = _INFINITIVES_FOLLOW & set(before) and not word.endswith("s")
                present += not infinitive
    return past / (past + present) if past + present else float("nan")


def person_shares(text: str) -> tuple[float, float]:
    """Share of an English text's words that are of the first person (I, my, us), and of the second.

    NaN without words, and where most of them are of another script.

    >>> person_shares("I'm glad. Are you?")
    (0.2, 0.2)
    """
    words = words_of(_in_full(text))
    if 2 * sum(map(is_latin, words)) <= len(words):
        return float("nan"), float("nan")
    first, second = (sum(word in listed for word in words) for listed in (_FIRST_PERSON, _SECOND_PERSON))
    return first / len(words), second / len(words)


def _in_full(text: str) -> str:
    """A text with the short forms of its verbs written out: I'm, didn't, it's."""
    text = plain(text)
    for pattern, full in _SHORT:
        text = pattern.sub(full, text)
    return text
