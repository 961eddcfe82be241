"""The bundled query sets keep what their data card promises."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "emolab" / "data"
CARD = (DATA / "README.md").read_text(encoding="utf-8")
LABELS = ("anger", "disgust", "fear", "joy", "sadness", "neutral")
SETS = ("general", "everyday")

# Beginnings of words that name an emotion or its display. A query that holds one leads the model lexically
# (43 of the paper's 100 joy queries do). "fun" and the like are closed with $ so that "funeral" passes.
STEMS = {
    "anger": "ang(er|r) annoy bitter cross$ enrag exasperat frustrat fum(e$|ed|ing) furi(ous)? fury grump"
    " hat(e|ing|red) hostil indign infuriat irate irritat livid mad$ madden offend outrag rage raging resent temper$"
    " upset wrath",
    "disgust": "abhor appal aversion contempt disgust distaste filth foul gag(g|$) gross gruesome icky loath nasty"
    " nause queas repel repuls repugn revolt revuls sick stench vile yuck yuk",
    "fear": "afraid alarm anxi apprehens creep danger dread eerie fear fright horr menac nervous panic petrif phobi"
    " scare scari scary shock spook startl stress tens(ed|ion) terr(i|or) threat timid uneas worr",
    "joy": "amus bless bliss cheer content(s|ed|ment)?$ delight eager ecsta elat enjoy enthus euphor excit exhilarat"
    " exult fun$ glad grateful gratitude grin happi happy hilari hop(e|ing)d? joy jubil laugh lov(e|ing|ely) merry"
    " overjoy pleas(ant|e[dr]|ing|ure) proud pride rejoic relie[fv] smil thank$ thrill wonderful",
    "sadness": "cried cries cry bereav blue$ dejec depress despair devastat disappoint forlorn gloom gloomy grie[fv]"
    " heartbr homesick hopeless lone(ly|some) melanchol miser miss(ed|ing|es)?$ mourn nostalg regret"
    " sad(ly|ness|den|der)?$ sob(s|b|$) sorrow sorry tear(s|ful|y)?$ unhapp weep wept woe",
    "other": "asham emotion embarrass envi(ous|ed) envy guilt humiliat jealous surpris(e|ed|ing)$ shame",
}
# Surroundings kept for the held-out split, whatever the label: no training query of "general" touches them.
HELDOUT_TOPICS = {
    "flying": "plane airport airline flight boarding cabin",
    "gardens": "garden tree compost lawn weedkiller basil forest rose",
    "weddings": "wedding bride groom altar church",
    "health": "doctor hospital operation bandage scan cancer pharmacist prescription eye patient nurse",
    "music": "concert band song piano sheet stage singer guitar",
    "books": "library librarian book novel chapter",
    "pets": "dog puppy cat vet rabbit aquarium",
    "water": "sea beach swimming swimmer pool boat tide harbour dolphin",
    "outdoors": "tent campsite camped summit mountain hike",
    "sport": "football boxing match striker goal sport",
}
# Other senses of these words.
TRAIN_USES = {"eye": "sheep-eye", "sheet": "stained-hotel-bed", "rose": "standing-ovation"}


def load(name: str) -> dict:
    return json.loads((DATA / "queries" / f"{name}.json").read_text(encoding="ascii"))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", text.lower().replace("'", ""))


def fold(text: str) -> str:
    return " ".join(words(text))


def named(text: str, stems: str = " ".join(STEMS.values())) -> list[str]:
    """Words of `text` that begin with one of the stems."""
    pattern = re.compile("|".join(f"(?:{stem})" for stem in stems.split()))
    return [word for word in words(text) if pattern.match(word)]


def count_rows(name: str) -> list[str]:
    """The table that the card must hold for a set, row by row."""
    queries, rows = load(name)["queries"], []
    for label in (*LABELS, "all"):
        own = [q for q in queries if label in (q["emotion"], "all")]
        split = Counter(q["split"] for q in own)
        mean = sum(len(q["query"].split()) for q in own) / max(len(own), 1)
        situations = len({q["situation"] for q in own})
        rows.append(f"| {label} | {split['train']} | {split['heldout']} | {len(own)} | {situations} | {mean:.1f} |")
    return rows


@pytest.mark.parametrize("name", SETS)
def test_card_counts_equal_the_file(name):
    section = re.search(rf"<!-- counts: {name} -->\n(.*?)<!-- end -->", CARD, flags=re.S)
    assert section, f"README.md has no '<!-- counts: {name} -->' block"
    expected = count_rows(name)
    found = [line for line in section[1].splitlines() if re.match(rf"\| ({'|'.join(LABELS)}|all) \|", line)]
    assert found == expected, "counts in the card are stale; put in:\n" + "\n".join(expected)


@pytest.mark.parametrize("name", SETS)
def test_layout_and_split(name):
    data = load(name)
    assert data["description"] and data["license"] == "MIT" and data["language"] == "en"
    splits = defaultdict(set)
    for q in data["queries"]:
        assert set(q) == {"query", "emotion", "situation", "split"}, q
        assert q["emotion"] in LABELS and q["split"] in ("train", "heldout"), q
        splits[q["situation"]].add(q["split"])
    assert not [s for s, found in splits.items() if len(found) > 1], "a situation is in both splits"
    folded = Counter(fold(q["query"]) for q in data["queries"])
    assert not [text for text, n in folded.items() if n > 1], "duplicates"


@pytest.mark.parametrize("name", ["general", "everyday"])
def test_one_query_per_line(name):
    lines = (DATA / "queries" / f"{name}.json").read_text(encoding="ascii").splitlines()
    assert sum(line.startswith('{"query": ') for line in lines) == len(load(name)["queries"])


def test_everyday_questions_evoke_nothing_and_are_new(general):
    everyday = load("everyday")["queries"]
    assert Counter(q["split"] for q in everyday) == {"train": 24, "heldout": 24}
    assert {q["emotion"] for q in everyday} == {"neutral"}
    situations = {q["situation"] for q in everyday}
    assert len(situations) == len(everyday) and not situations & {q["situation"] for q in general}
    known = [set(words(q["query"])) for q in general]
    for i, q in enumerate(everyday):
        text, bag = q["query"], set(words(q["query"]))
        assert text.isprintable() and text == " ".join(text.split()) and text[0].isupper(), text
        # open ones: no yes or no, no number, no fact would do
        assert re.match(r"(Tell me|Describe|What|How (do|did|is|was)) ", text) and text[-1] in "?.", text
        assert 4 <= len(text.split()) <= 12 and not named(text), text
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", q["situation"]), q["situation"]
        for other in known + [set(words(q["query"])) for q in everyday[:i]]:
            assert len(bag & other) / len(bag | other) <= 0.6, (text, other)
    openings = Counter(q["query"].split()[0] for q in everyday)
    assert openings.most_common(1)[0][1] <= len(everyday) / 2, openings


@pytest.fixture(scope="module")
def general() -> list[dict]:
    return load("general")["queries"]


def test_enough_queries_and_balanced_splits(general):
    total = Counter(q["emotion"] for q in general)
    heldout = Counter(q["emotion"] for q in general if q["split"] == "heldout")
    assert all(total[label] >= (60 if label == "neutral" else 40) for label in LABELS), total
    assert all(0.2 <= heldout[label] / total[label] <= 0.3 for label in LABELS), heldout
    assert len({heldout[label] for label in LABELS[:-1]}) == 1, heldout


def test_form(general):
    for q in general:
        text, n = q["query"], len(q["query"].split())
        assert text.isascii() and text.isprintable() and text == " ".join(text.split()), text
        assert text[0].isupper() and text[-1] in "?." and '"' not in text, text
        assert (6 <= n <= 25) if q["emotion"] == "neutral" else (12 <= n <= 30), (n, text)
        assert not re.search(r"context|the question|as an ai|\b(example|scenario|answer):", text.lower()), text
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", q["situation"]), q["situation"]


def test_stem_list_catches_what_it_should():
    for word in (
        "angry furious disgusting gross afraid scary frightened happy delighted sad cry crying tears joyful "
        "worried lonely unhappy upset loved raging terrified horrible thrilled missed hopeful"
    ).split():
        assert named(word), word
    assert not named("funeral garage happens season crossing terrace saddle hat mission temperature")


def test_no_query_names_an_emotion(general):
    hits = {q["query"]: named(q["query"]) for q in general if named(q["query"])}
    assert not hits


def test_no_near_duplicates(general):
    bags = [(q, set(words(q["query"]))) for q in general]
    for (a, left), (b, right) in combinations(bags, 2):
        jaccard = len(left & right) / len(left | right)
        assert jaccard <= 0.6, (round(jaccard, 2), a["query"], b["query"])


def test_situation_has_one_emotion_and_few_queries(general):
    by_situation = defaultdict(list)
    for q in general:
        by_situation[q["situation"]].append(q["emotion"])
    assert all(len(set(found)) == 1 and len(found) <= 2 for found in by_situation.values())


def test_heldout_topics_stay_out_of_training(general):
    topic = {word: name for name, listed in HELDOUT_TOPICS.items() for word in listed.split()}
    seen = defaultdict(set)
    for q in general:
        for word in words(q["query"]):
            word = word if word in topic else word.removesuffix("s")
            if q["split"] == "heldout" and word in topic:
                seen[topic[word]].add(q["emotion"])
            elif word in topic:
                assert TRAIN_USES.get(word) == q["situation"], (word, q["query"])
    # every label meets every held-out topic, so that topic says nothing about emotion there
    assert {name: sorted(set(LABELS) - seen[name]) for name in HELDOUT_TOPICS if seen[name] != set(LABELS)} == {}


def test_openings_vary(general):
    openings = Counter(" ".join(words(q["query"])[:4]) for q in general if q["emotion"] != "neutral")
    assert openings.most_common(1)[0][1] <= 0.1 * openings.total()
