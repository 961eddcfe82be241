"""Tables of texts and words, and shaded texts: others' words are shown, and never run."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from emolab.base.errors import EmolabError
from emolab.plot.text import attention_html, text_table, words_table
from tests.plot.made import scored


def test_tables_of_texts_show_doses_as_numbers_and_words_as_words():
    table = scored(alphas=(0.0, 0.5), emotions=("joy",), n=1).assign(text="<b>loud</b>", query="<i>why?</i>")
    html = text_table(table).to_html()
    assert re.findall(r"col_heading[^>]*>([^<]*)<", html) == ["0", "0.5"]
    assert "&lt;b&gt;loud" in html and "<i>" not in text_table(table, columns="query").to_html()


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
    with pytest.raises(EmolabError, match="lacks part"):
        words_table(table.drop(columns="part"))
