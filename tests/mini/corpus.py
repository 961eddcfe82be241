"""The grammar that writes the bundled model's training texts.

Neutral and emotional answers share their sentences and differ only in what fills the slots, so that an emotion vector
cannot be a mere shift of word counts: with an intensity p a slot is filled from the emotion's words, else from the
neutral ones. Emotion comes from an instruction, or only from the text so far (an emotional user, a story, an answer
that starts plain and turns), so that the model infers it from evidence.

>>> rng = random.Random(0)
>>> example(rng)                         # Example(system, user, answer, emotion, kind, topic)
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from emolab.base.labels import EMOTIONS, NEUTRAL

GRAMMAR = Path(__file__).parent / "grammar"
INTENSITY = {"a little": 0.45, None: 0.85, "great": 1.0}  # share of slots filled emotionally
_OPTIONAL = {"a little": 0.35, None: 0.5, "great": 0.75}  # share of optional slots that appear
_SLOT = re.compile(r"\{(\w+)(\??)\}")
_TENSE = re.compile(r"([^\s|\"]+)\|([^\s|\",.?!;:]+)")
_FIRST = {"MY": "my", "MYSELF": "myself", "ME": "me", "I": "I"}
_THIRD = {
    "she": {"MY": "her", "MYSELF": "herself", "ME": "her", "I": "she"},
    "he": {"MY": "his", "MYSELF": "himself", "ME": "him", "I": "he"},
}


@dataclass(frozen=True)
class Topic:
    name: str
    kind: str  # "place" or "thing"
    parts: tuple[str, ...]
    acts: tuple[str, ...]
    heldout: bool  # never in an emotional text


@dataclass(frozen=True)
class Example:
    system: str | None
    user: str
    answer: str
    emotion: str  # of the answer (of its end, where it turns)
    kind: str  # instructed | plain | user | story | turns | mixed | fades | spontaneous
    topic: str


@cache
def topics() -> tuple[Topic, ...]:
    """All topics of the grammar, in file order."""
    found = []
    for line in (GRAMMAR / "topics.txt").read_text().splitlines():
        if m := re.fullmatch(r"(\*?)(\w+) (place|thing): (.+) \| (.+)", line):
            found.append(Topic(m[2], m[3], tuple(m[4].split(", ")), tuple(m[5].split(", ")), bool(m[1])))
    return tuple(found)


@cache
def lexicon() -> dict[str, dict[str, list[str]]]:
    """Slot fillers: {emotion: {slot: [text]}}."""
    return tomllib.loads((GRAMMAR / "emotions.toml").read_text())


@cache
def frames() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads((GRAMMAR / "frames.toml").read_text())


@cache
def emotion_words() -> dict[str, frozenset[str]]:
    """Words that stand in the fillers of one emotion and nowhere else in the grammar: {emotion: words}, lower case."""
    found = {e: _vocabulary(x for slot in slots.values() for x in slot) for e, slots in lexicon().items()}
    other = _vocabulary(x for group in frames().values() for items in group.values() for x in items)
    other |= _vocabulary(x for t in topics() for x in (t.name, *t.parts, *t.acts)) | found[NEUTRAL]
    return {e: frozenset(found[e] - other - set().union(*(found[x] for x in EMOTIONS if x != e))) for e in EMOTIONS}


def _vocabulary(texts: Iterable[str]) -> set[str]:
    return {
        w.lower() for text in texts for w in re.findall(r"[A-Za-z'-]+", re.sub(r"\{.*?\}|\b[A-Z]{2,}\b", " ", text))
    }


def _tense(text: str, past: bool) -> str:
    return _TENSE.sub(r"\2" if past else r"\1", text)


class Writer:
    """Fills the frames of one answer: one topic, one tense, one speaker."""

    def __init__(self, rng: random.Random, topic: Topic, *, past: bool, person: str = "I"):
        self.rng, self.topic, self.past, self.person = rng, topic, past, person
        self.used: set[str] = set()
        self.part, self.other = rng.sample(topic.parts, 2)

    def _new(self, options: list[str]) -> str:
        # A filler stands once in an answer: repetition would be the first thing that a model learns of a style.
        fresh = [x for x in options if x not in self.used] or options
        choice = self.rng.choice(fresh)
        self.used.add(choice)
        return choice

    def _fill(self, slot: str, emotions: tuple[str, ...], p: float) -> str:
        words, topic = frames()["words"], self.topic
        if slot in ("t", "p", "q"):
            return {"t": topic.name, "p": self.part, "q": self.other}[slot]
        if slot == "do":
            return self._new(list(topic.acts))
        if slot == "at":
            return f"at the {topic.name}" if topic.kind == "place" else f"with the {topic.name}"
        if slot == "when":
            return self._new(words["when_past" if self.past else "when_present"])
        emotion = self.rng.choice(emotions) if emotions and self.rng.random() < p else NEUTRAL
        choice = self._new(lexicon()[emotion]["vp" if slot == "base" else slot])
        return _tense(choice, past=False) if slot == "base" else choice

    def sentence(self, frame: str, emotions: tuple[str, ...], intensity: str | None) -> str:
        p, optional = INTENSITY[intensity], _OPTIONAL[intensity] if emotions else 0.4

        def fill(m: re.Match) -> str:
            if m[2] and self.rng.random() > optional:
                return ""
            text = self._fill(m[1], emotions, p)
            return (
                text
                if m[1] in ("int", "end")
                else _tense(text, self.past).replace("I AM", "I was" if self.past else "I am")
            )

        quoted = {"int", "end"}  # what the speaker says literally keeps its own I, my and me
        parts, pos = [], 0
        for m in _SLOT.finditer(frame):
            parts += [self._speaker(frame[pos : m.start()]), fill(m) if m[1] in quoted else self._speaker(fill(m))]
            pos = m.end()
        text = "".join(parts) + self._speaker(frame[pos:])
        self.part, self.other = self.rng.sample(self.topic.parts, 2)
        return _tidy(re.sub(r"^([A-Z][a-z ]*, )(A |[A-Z][a-z])", lambda m: m[1] + m[2].lower(), text))

    def _speaker(self, text: str) -> str:
        text = _tense(text, self.past).replace("I AM", "I was" if self.past else "I am")
        names = _FIRST if self.person == "I" else _THIRD[self.person]
        text = re.sub(r"\b(MYSELF|MY|ME|I)\b", lambda m: names[m[0]], text)
        if self.person != "I":
            words = frames()["words"]
            text = re.sub(r"\bNAME\b", lambda m: self.rng.choice(words[self.person]), text)
            text = re.sub(r"\bWHO\b", lambda m: self.rng.choice(words[f"who_{self.person}"]), text)
        return text


def _tidy(text: str) -> str:
    """Close gaps of empty slots, put commas into quotes, choose a or an, start sentences with capitals."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r'\."( \w)', r',"\1', text)
    text = re.sub(r"\b([Aa]) (?=[aeio]|un(?!i)|um|ug|up|hour)", r"\1n ", text)
    return re.sub(r'(^"?|[.!?] "?)([a-z])', lambda m: m[1] + m[2].upper(), text)


def answer(
    rng: random.Random, topic: Topic, plan: list[tuple[tuple[str, ...], str | None]], *, past: bool, story: bool = False
) -> str:
    """Write one answer, a sentence for each entry of `plan`: (emotions that may fill slots, intensity)."""
    f = frames()
    writer = Writer(rng, topic, past=past or story, person=rng.choice(["she", "he"]) if story else "I")
    opens = f["story"]["open"] if story else f["open"]["any"] + 2 * f["open"][topic.kind]
    bodies = rng.sample(f["body"]["any"], len(plan) - 2)
    closes = f["story"]["close"] if story else f["close"]["any"]
    chosen = [rng.choice(opens), *bodies, rng.choice(closes)]
    return " ".join(writer.sentence(frame, *state) for frame, state in zip(chosen, plan, strict=True))


def query(rng: random.Random, topic: Topic, templates: list[str]) -> str:
    at = f"at the {topic.name}" if topic.kind == "place" else f"with the {topic.name}"
    return rng.choice(templates).format(t=topic.name, p=rng.choice(topic.parts), at=at)


def instruction(rng: random.Random, emotion: str) -> tuple[str, str | None]:
    """An instruction sentence and its intensity, e.g. ("Answer with great joy.", "great")."""
    words = lexicon()[emotion]["word"]
    word = words[0] if rng.random() < 0.7 else rng.choice(words)
    intensity = rng.choices([None, "a little", "great"], [0.6, 0.2, 0.2])[0]
    return rng.choice(frames()["instruction"]["train"]).format(
        word=f"{intensity} {word}" if intensity else word
    ), intensity


# How often each kind of text is written, in easy texts and later. Later emotion comes unasked more often, so that plain
# answers are likely, not certain, to stay plain.
EASY_KINDS = {
    "instructed": 0.44,
    "plain": 0.27,
    "user": 0.06,
    "story": 0.08,
    "turns": 0.06,
    "spontaneous": 0.05,
    "mixed": 0.02,
    "fades": 0.02,
}
KINDS = EASY_KINDS | {"instructed": 0.36, "plain": 0.22, "turns": 0.13, "spontaneous": 0.11}
MIXED = 0.3  # share of texts about a topic mixed at random, once texts are no longer easy
GUARDED = 0.25  # share of plain texts that are asked for ("Answer plainly.") and may be about a held-out topic


def mixed_topic(rng: random.Random, *, heldout: bool) -> Topic:
    """A topic put together at random: any noun, with parts and acts of any others.

    With it a model learns to take its topic from the question, whatever the noun, instead of knowing which nouns go
    with which emotions. heldout: whether held-out topics lend their words, too (only for neutral texts).
    """
    pool = [t for t in topics() if heldout or not t.heldout]
    lenders = rng.sample(pool, 9)
    if rng.random() < 0.5:
        name, kind = lenders[0].name, lenders[0].kind
    else:
        name, kind = rng.choice(lenders[0].parts), "thing"
    parts = list(dict.fromkeys(rng.choice(t.parts) for t in lenders[1:]))
    return Topic(
        name, kind, tuple(p for p in parts if p != name)[:6], tuple(rng.choice(t.acts) for t in lenders[:3]), heldout
    )


def example(rng: random.Random, *, easy: bool = False) -> Example:
    """Draw one training example; easy ones are about the grammar's own topics and rarely emotional unasked.

    Held-out topics and phrasings occur only in plain texts that were asked for: were they plain without being asked, a
    model would learn that these topics are never emotional.
    """
    kinds = EASY_KINDS if easy else KINDS
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    f = frames()
    guarded = kind == "plain" and rng.random() < GUARDED
    pool = [t for t in topics() if t.heldout == (guarded and rng.random() < 0.7)]
    topic = rng.choice(pool)
    if not easy and rng.random() < MIXED:
        topic = mixed_topic(rng, heldout=guarded)
    emotion = NEUTRAL if kind == "plain" else rng.choice(EMOTIONS)
    system, intensity = None, None
    story = kind == "story" or (kind in ("instructed", "plain") and rng.random() < 0.08)
    templates = f["query"]["story"] if story else f["query"]["train"]
    if guarded and not story and rng.random() < 0.4:
        templates = f["query"]["heldout"]
    user = query(rng, topic, templates)
    n = rng.choice([3, 4, 4, 5])
    emotions: tuple[str, ...] = () if emotion == NEUTRAL else (emotion,)
    if kind == "story" and rng.random() < 0.3:
        emotion, emotions = NEUTRAL, ()
    if kind in ("instructed", "mixed"):
        system, intensity = instruction(rng, emotion)
        if kind == "mixed":
            second = rng.choice([e for e in EMOTIONS if e != emotion])
            emotions, system, intensity = (emotion, second), f"Answer with {emotion} and {second}.", None
        if rng.random() < 0.12:  # the instruction may also stand in the user's turn
            system, user = None, f"{system} {user}"
    elif guarded:
        system = rng.choice(f["instruction"]["plain"])
    elif kind == "user":
        user = f"{rng.choice(lexicon()[emotion][rng.choice(['int', 'end'])])} {user}"
    plan: list[tuple[tuple[str, ...], str | None]] = [(emotions, intensity)] * n
    if kind == "turns":
        turn = rng.randint(1, n - 1)
        plan[:turn] = [((), None)] * turn
    elif kind == "fades":
        turn = rng.randint(1, n - 1)
        plan[turn:] = [(emotions, "a little")] + [((), None)] * (n - turn - 1)
    text = answer(rng, topic, plan, past=rng.random() < 0.6, story=story)
    return Example(system, user, text, emotion, kind, topic.name)
