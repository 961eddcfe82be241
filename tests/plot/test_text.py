"""Tables of texts and words, and shaded texts: others' words are shown, and never run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pandas as pd
import pytest

from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS, styles
from emolab.plot.side_by_side import text_table
from emolab.plot.text import attention_html, words_table


class Cells(HTMLParser):
    """The cells of the table: their words, how many rows they span, what is bold in them and in which style."""

    def __init__(self, html: str):
        super().__init__()
        self.rows, self.spans, self.bold, self.above = [], {}, [], ""
        self.inside = self.strong = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")
            if span := dict(attrs).get("rowspan"):
                self.spans[len(self.rows) - 1, len(self.rows[-1]) - 1] = int(span)
        elif tag == "b" and self.rows:
            self.strong = True
            self.bold.append(("", dict(attrs)["style"]))
        elif tag in ("small", "br") and self.inside:
            self.rows[-1][-1] += "|"

    def handle_endtag(self, tag):
        self.inside &= tag not in ("td", "th")
        self.strong &= tag != "b"

    def handle_data(self, data):
        if self.strong:
            words, style = self.bold[-1]
            self.bold[-1] = (words + data, style)
        if self.inside:
            self.rows[-1][-1] += data
        elif not self.rows:
            self.above += data.strip("\n")


def sweep(emotions=("joy", "sadness"), alphas=(0.0, 1.5, 4.0), queries=("How is it?", "Where?")) -> pd.DataFrame:
    """Two questions, all controls; each text says how it came about."""
    rows = []
    for (number, query), emotion, control, alpha in product(
        enumerate(queries), emotions, ("none", "random", "shuffled"), alphas
    ):
        if alpha or control == "none":
            text = f"{control} {emotion} {alpha:g} to {number}" if alpha else f"plain {number}"
            rows.append((f"q{number}", query, emotion, alpha, control, text))
    return pd.DataFrame(rows, columns=["query_id", "query", "emotion", "alpha", "control", "text"])


def told(emotions=("neutral", "joy", "sadness"), queries=("How is it?", "Where?")) -> pd.DataFrame:
    rows = [(f"q{i}", q, "neutral", e, f"told {e} {i}") for i, q in enumerate(queries) for e in reversed(emotions)]
    return pd.DataFrame(rows, columns=["query_id", "query", "emotion", "condition", "text"])


def test_each_way_is_a_column_and_the_unsteered_text_stands_once():
    cells = Cells(text_table(sweep(), reference=told()))
    assert cells.above == "Question: How is it?"
    assert cells.rows == [
        ["", "unsteered", "vector, dose 4", "random direction", "shuffled labels", "instructed"],
        ["joy", "plain 0", "none joy 4 to 0", "random joy 4 to 0", "shuffled joy 4 to 0", "told joy 0"],
        ["sadness", "none sadness 4 to 0", "random sadness 4 to 0", "shuffled sadness 4 to 0", "told sadness 0"],
    ]
    assert cells.spans == {(1, 1): 2}


def test_of_several_doses_controls_are_shown_at_the_largest():
    cells = Cells(text_table(sweep(), query="q1", alphas=[4, 0, 1.5]))
    controls = ["random direction, dose 4", "shuffled labels, dose 4"]
    assert cells.above == "Question: Where?"
    assert cells.rows[0] == ["", "unsteered", "vector, dose 1.5", "vector, dose 4", *controls]
    assert cells.rows[1][1:4] == ["plain 1", "none joy 1.5 to 1", "none joy 4 to 1"]
    assert cells.rows[2][1:4] == ["none sadness 1.5 to 1", "none sadness 4 to 1", "random sadness 4 to 1"]
    assert Cells(text_table(sweep(), query="Where?", alphas=[1.5])).rows[1][1:4] == [
        "plain 1",
        "none joy 1.5 to 1",
        "random joy 1.5 to 1",
    ]


def test_each_emotion_at_its_own_dose():
    cells = Cells(text_table(sweep(), alphas={"joy": 1.5, "sadness": 4, "fear": 9}))
    assert cells.rows[0] == ["", "unsteered", "vector", "random direction", "shuffled labels"]
    assert cells.rows[1] == ["joy, dose 1.5", "plain 0", *(f"{c} joy 1.5 to 0" for c in ("none", "random", "shuffled"))]
    assert cells.rows[2] == ["sadness, dose 4", *(f"{c} sadness 4 to 0" for c in ("none", "random", "shuffled"))]


def test_doses_as_rows():
    one = sweep(alphas=(-1.0, 0.0, 1.5, 4.0)).query("emotion == 'joy'")
    cells = Cells(text_table(one, rows="alpha", reference=told(), query="q1"))
    controls = ["vector", "random direction", "shuffled labels"]
    assert cells.rows == [
        ["", "unsteered", *controls, "instructed"],
        ["dose -1", "plain 1", *(f"{c} joy -1 to 1" for c in ("none", "random", "shuffled")), "told joy 1"],
        ["dose 1.5", *(f"{c} joy 1.5 to 1" for c in ("none", "random", "shuffled"))],
        ["dose 4", *(f"{c} joy 4 to 1" for c in ("none", "random", "shuffled"))],
    ]
    assert cells.spans == {(1, 1): 3, (1, 5): 3}
    assert [row[0] for row in Cells(text_table(one, rows="alpha", alphas=[4])).rows] == ["", "dose 4"]


def test_questions_as_rows_have_their_own_unsteered_texts_and_answers():
    joy = sweep().query("emotion == 'joy'")
    more = told(queries=("How is it?", "Where?", "Not asked here"))
    cells = Cells(text_table(joy, rows="query", reference=more))
    assert cells.above == "" and cells.spans == {}
    assert cells.rows[1:] == [
        ["How is it?", "plain 0", *(f"{c} joy 4 to 0" for c in ("none", "random", "shuffled")), "told joy 0"],
        ["Where?", "plain 1", *(f"{c} joy 4 to 1" for c in ("none", "random", "shuffled")), "told joy 1"],
    ]


def test_a_prompted_control_is_an_instruction_and_a_clamp_at_zero_an_edit():
    prompted = sweep().query("control == 'random' and alpha == 4").assign(control="prompt", alpha=0.0, text="as told")
    cells = Cells(text_table(pd.concat([sweep().query("control == 'none'"), prompted])))
    assert cells.rows[0] == ["", "unsteered", "vector, dose 4", "instructed"]
    assert cells.rows[1][3] == "as told"
    clamped = Cells(text_table(sweep(alphas=(0.0,)).assign(op="clamp")))
    assert clamped.rows[0] == ["", "vector, dose 0"] and clamped.rows[1] == ["joy", "plain 0"]


def test_any_two_columns():
    table = pd.DataFrame({"label": ["joy", "anger", "joy", "anger"], "topic": ["sea", "sea", "bus", "bus"]})
    table["text"] = ["a", "b", "c", "d"]
    cells = Cells(text_table(table, rows="label", columns="topic"))
    assert cells.rows == [["", "sea", "bus"], ["anger", "b", "d"], ["joy", "a", "c"]] and cells.above == ""
    wide = text_table(sweep().query("control == 'none'"), columns="alpha", alphas=[0, 4])
    assert Cells(wide).rows[0] == ["", "dose 0", "dose 4"]
    by_control = Cells(text_table(sweep().query("alpha == 4"), rows="control", columns="query"))
    assert [row[0] for row in by_control.rows] == ["", "vector", "random direction", "shuffled labels"]
    kinds = pd.Categorical(table["topic"], ["bus", "sea", "hill"], ordered=True)
    assert Cells(text_table(table.assign(topic=kinds), rows="label", columns="topic")).rows[0] == ["", "bus", "sea"]


def test_of_several_texts_the_first_is_shown_and_that_is_said():
    html = text_table(sweep().query("control == 'none'"), columns="query")
    assert Cells(html).rows[1] == ["joy", "plain 0", "plain 1"] and "the first of up to 3 texts" in html
    assert "the first of" not in text_table(sweep(), reference=told())


def test_what_is_missing_is_a_dash_and_no_cell_is_lost():
    table = sweep()
    table = table[(table["emotion"] == "joy") | (table["control"] != "random")]
    cells = Cells(text_table(table, reference=told(emotions=("joy",))))
    assert cells.rows[2] == ["sadness", "none sadness 4 to 0", "–", "shuffled sadness 4 to 0", "–"]
    empty = sweep().assign(text=lambda t: t["text"].mask(t["control"] == "none", ""))
    assert Cells(text_table(empty)).rows[1][1:3] == ["(no words)", "(no words)"]


def test_words_of_emotions_stand_out_in_their_colour():
    table = pd.DataFrame({"emotion": ["joy"], "alpha": 1, "text": "Joyful, and not furious; the joystick is sad. calm"})
    html = text_table(table, columns="alpha")
    assert [words for words, _ in Cells(html).bold] == ["joy", "Joyful"], "no other emotion is named in this table"
    html = text_table(table.assign(p_anger=0.1, p_sadness=0.2, p_neutral=0.7), columns="alpha")
    bold = dict(Cells(html).bold)
    assert list(bold) == ["joy", "Joyful", "furious", "sad"]
    for word, emotion in (("Joyful", "joy"), ("furious", "anger"), ("sad", "sadness")):
        assert bold[word].endswith(f"border-bottom:2px solid {styles([emotion])[emotion][0]}")
    mixed = pd.DataFrame({"emotion": ["0.5 anger + 0.5 joy"], "alpha": 1, "text": "glad, angry"})
    assert [words for words, _ in Cells(text_table(mixed, columns="alpha")).bold] == ["anger", "joy", "glad", "angry"]


def test_colours_of_words_can_be_read_by_day_and_by_night():
    table = pd.DataFrame({"emotion": [*EMOTIONS, "calm", "awe"], "alpha": 1, "text": "x", "top": "neutral"})
    html = text_table(table, columns="alpha")
    used = set(re.findall(r"(?<![-\w])color:(#\w{6})", html))
    assert len(used) == 8
    for shade in used:
        for page in ("#ffffff", "#111111"):
            light, dark = sorted((luminance(shade), luminance(page)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) > 4
    assert "background:#" not in html and "<style" not in html


def luminance(shade: str) -> float:
    parts = [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_what_judges_read_stands_under_the_text():
    table = sweep(emotions=("joy",), alphas=(1.5,), queries=("Why?",)).assign(top=["joy", "neutral", "unread"])
    table = table.assign(p_joy=[0.824, 0.1, np.nan], p_neutral=[0.1, 0.9, np.nan])
    assert Cells(text_table(table)).rows[1] == [
        "joy",
        "none joy 1.5 to 0|read as joy 0.82",
        "random joy 1.5 to 0|read as neutral 0.90",
        "shuffled joy 1.5 to 0|not read",
    ]
    more = table.assign(blind_top=["sadness", "joy", "joy"], self_report_top=["joy", None, "joy"])
    more.attrs["judges"] = ["embedding", "blind", "self_report"]
    assert [cell.split("|")[1] for cell in Cells(text_table(more)).rows[1][1:]] == [
        "embedding: joy 0.82 · blind: sadness · self report: joy",
        "embedding: neutral 0.90 · blind: joy",
        "embedding: not read · blind: joy · self report: joy",
    ]
    assert "read" not in text_table(more, read=False) and "blind" not in text_table(more, read=False)


def test_loops_and_refusals_are_said():
    texts = ["so so so so so so so so so so", "As an AI, I have no feelings.", "All is well here."]
    table = sweep(emotions=("joy",), alphas=(1.5,), queries=("Why?",)).assign(text=texts)
    assert [cell.split("|")[1:] for cell in Cells(text_table(table)).rows[1][1:]] == [["loops"], ["refuses"], []]
    own = table.assign(top="joy", p_joy=0.5, loop=[False, True, True], refusal=[False, False, True])
    assert [cell.split("|")[1] for cell in Cells(text_table(own)).rows[1][1:]] == [
        "read as joy 0.50",
        "read as joy 0.50 · loops",
        "read as joy 0.50 · loops · refuses",
    ]


def test_texts_are_escaped_and_control_characters_shown():
    hostile = "<script>alert('1')</script> & \"quoted\" a\x00b\x1b[31m\ud800 \x85 {{ x }} $x$\nnext"
    table = pd.DataFrame({"emotion": ["<i>joy</i>"], "alpha": [1], "query": ["Why <b>?"]})
    table["text"] = pd.Series([hostile], dtype=object)  # pandas' own strings hold no surrogate
    html = text_table(table.assign(top="<u>x"), columns="alpha")
    assert "<script" not in html and "<i>" not in html and "<u>" not in html and "Why &lt;b&gt;?" in html
    shown = "<script>alert('1')</script> & \"quoted\" a␀b␛[31m\ufffd \ufffd {{ x }} $x$|next"
    assert Cells(html).rows[1] == ["<i>joy</i>", f"{shown}|read as <u>x"]
    assert "mathjax_ignore" in html and html.encode() and html._repr_html_() == str(html)


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        (lambda t: t.drop(columns="text"), {}, "lacks text"),
        (lambda t: t.drop(columns="control"), {}, "lacks control"),
        (lambda t: t.drop(columns="emotion"), {}, "lacks emotion"),
        (lambda t: t, {"columns": "source"}, "lacks source"),
        (lambda t: t.drop(columns="alpha"), {"columns": "control", "alphas": [1]}, "lacks alpha"),
        (lambda t: t.iloc[:0], {}, "is empty"),
        (
            lambda t: t,
            {"query": "Who?"},
            "no text answers the question 'Who[?]'; the table has 'How is it[?]; Where[?]'",
        ),
        (lambda t: t, {"alphas": [1.5, 3]}, "no text is steered at dose 3; the table has 1.5, 4"),
        (lambda t: t, {"alphas": []}, "alphas are"),
        (lambda t: t, {"rows": "alpha"}, "the table has the emotions joy, sadness; filter it to one"),
        (lambda t: t[t["alpha"] == 0], {}, "holds no steered text"),
        (lambda t: t.assign(site=["attn", "resid"] * (len(t) // 2)), {}, "mixes site = attn, resid"),
        (lambda t: t, {"columns": "control", "reference": sweep()}, 'a column of columns="how"'),
        (lambda t: t, {"reference": sweep()}, "lacks condition"),
        (lambda t: t, {"reference": told(queries=("Else?",)).assign(query_id="e")}, "no text answers"),
        (lambda t: t.assign(source=None), {"columns": "source"}, "column source holds nothing"),
    ],
)
def test_what_cannot_be_shown_is_refused(change, options, told):
    with pytest.raises(EmolabError, match=told):
        text_table(change(sweep()), **options)


def test_html_is_escaped():
    rows = [(1, "<b>", 0, "a", 0.5), (1, "<b>", 1, "<script>", 0.5)]
    rows += [(2, "c", 0, "a", 0.1), (2, "c", 1, "<script>", 0.2), (2, "c", 2, "<b>", 0.7)]
    table = pd.DataFrame(rows, columns=["from_position", "next_token", "position", "token", "weight"])
    html = attention_html(table)
    assert "<script>" not in html and "&lt;script&gt;" in html and html._repr_html_() == str(html)
    assert 'title="0.350"' in html and 'title="0.700"' in attention_html(table, position=2)
    with pytest.raises(EmolabError, match="no position 9"):
        attention_html(table, position=9)


def test_table_of_words():
    rows = [
        (p, e, 3, -1, d, r, f"<{e}{r}>", 1.0)
        for p, e in (("whole", "joy"), ("shared", "shared"), ("specific", "joy"), ("specific", "anger"))
        for d in ("raised", "lowered")
        for r in (1, 2, 3)
    ]
    table = pd.DataFrame(rows, columns=["part", "emotion", "layer", "head", "direction", "rank", "token", "logit"])
    style = words_table(table, n=2)
    assert list(style.data["emotion"]) == ["joy", "shared", "anger", "joy"]
    assert style.data["raised"][0] == "<joy1> · <joy2>" or "<joy1> · <joy2>" in set(style.data["raised"])
    assert "<joy1>" not in style.to_html() and "&lt;joy1&gt;" in style.to_html()
    with pytest.raises(EmolabError, match="lacks token"):
        words_table(table.drop(columns="token"))
    neurons = table[table["part"] == "whole"].drop(columns=["part", "head"]).assign(neuron=7)
    assert list(words_table(neurons, n=2).data) == ["layer", "neuron", "emotion", "raised", "lowered"]
