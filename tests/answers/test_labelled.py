"""Labelled texts of a user: every row is accounted for, or one error names it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import emolab
from emolab.answers.labelled import GOEMOTIONS, labelled
from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError, FileError

ROWS = [("joy", "What a day!"), ("neutral", "It is a day, then"), ("joy", 'He said "yes"')]
TABLE = pd.DataFrame(ROWS, columns=["label", "text"])


def pairs(source):
    return sorted(labelled(source)[["label", "text"]].itertuples(index=False, name=None))


def test_a_lost_quotation_mark_is_refused(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text('label,text\njoy,"What a day!\nneutral,It is a day\njoy,He said "yes" and left\nneutral,Plain\n')
    with pytest.raises(FileError, match=r"in the row of line 2: .*close each quotation mark"):
        responses_from_texts(path)
    path.write_text('label,text\njoy,"What a day!\nneutral,It is a day\n')
    with pytest.raises(FileError, match="in the row of line 2"):
        responses_from_texts(path)
    path.write_text('text,label\n"What a day!,joy\n"It is a day",neutral\n')
    with pytest.raises(FileError, match="in the row of line 2"):
        responses_from_texts(path)


@pytest.mark.parametrize(
    "text", ["What a day!\nneutral,It is a day\njoy,He", "What a day,joy\nIt is a day,neutral\nSo"]
)
def test_merged_rows_that_another_reader_let_pass_are_refused(text):
    table = pd.DataFrame({"label": ["neutral", "joy"], "text": ["Plain", text]})
    with pytest.raises(EmolabError, match=r"row 1 \(joy\) holds a line .* lost quotation mark"):
        responses_from_texts(table)


def test_texts_of_several_lines_are_texts(tmp_path):
    table = pd.DataFrame({"label": ["joy", "neutral"], "text": ["Dear Ann,\nwhat joy, and peace\n", 'A "road"\n\nb']})
    table.to_csv(tmp_path / "lines.csv", index=False)
    assert pairs(tmp_path / "lines.csv") == pairs(table) == sorted(table.itertuples(index=False, name=None))


@pytest.mark.parametrize(
    "labels, told",
    [
        (["joy", "neutral", "joy "], r"'joy' \(row 0\) and 'joy ' \(row 2\), which differ only by case or space"),
        (["joy", "neutral", "Joy"], r"'joy' \(row 0\) and 'Joy' \(row 2\)"),
        (["Neutral", "joy", "fear"], r"'Neutral' \(row 0\), which is 'neutral' but for case or space"),
        (["neutral", "joy", " neutral"], r"'neutral' \(row 0\) and ' neutral' \(row 2\)"),
        (["neutral", "very glad", "very  glad"], r"'very glad' \(row 1\) and 'very  glad' \(row 2\)"),
    ],
)
def test_labels_that_differ_only_by_case_or_space_are_refused(labels, told, tiny_llama):
    table = pd.DataFrame({"label": labels, "text": ["a road", "a park", "a sea"]})
    for source in (table, dict(zip(labels, [["a"], ["b"], ["c"]], strict=True))):
        with pytest.raises(EmolabError, match=told):
            responses_from_texts(source)
    with pytest.raises(EmolabError, match=told):
        emolab.response_means(tiny_llama, table.rename(columns={"label": "condition"}))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [("label", "text"), ("Label", "TEXT "), (" label", "Text")])
def test_separators_and_spellings_of_the_header(separator, header, tmp_path):
    path = tmp_path / "texts.csv"
    TABLE.set_axis(list(header), axis=1).to_csv(path, index=False, sep=separator)
    assert pairs(path) == pairs(TABLE) == sorted(ROWS)
    TABLE[["text", "label"]].assign(id=3).set_axis([*header[::-1], "id"], axis=1).to_csv(
        path, index=False, sep=separator
    )
    assert pairs(path) == sorted(ROWS)


def test_spaces_behind_separators(tmp_path):
    (tmp_path / "spaced.csv").write_text(
        'label, text\njoy, What a day!\nneutral, "It is, then"\n', encoding="utf-8-sig"
    )
    assert pairs(tmp_path / "spaced.csv") == [("joy", "What a day!"), ("neutral", "It is, then")]


def test_a_row_of_another_length_is_named(tmp_path):
    path = tmp_path / "ragged.csv"
    for line, n in (("joy,What a day, friend", 3), ("joy", 1)):
        path.write_text(f"label,text\nneutral,a road\n{line}\n")
        with pytest.raises(FileError, match=f"line 3 of .* has {n} fields, its header 2"):
            responses_from_texts(path)


def test_goemotions_as_published(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text('My "favourite" food is anything.\t27\tee\n"Now he is off\t2,14\ted\nWhat a day\t17\tef\n')
    with pytest.warns(UserWarning, match="1 of 3 texts carry several labels or none"):
        found = pairs(path)
    assert found == [("joy", "What a day"), ("neutral", 'My "favourite" food is anything.')]
    assert len(GOEMOTIONS) == 28 and GOEMOTIONS[2] == "anger" and GOEMOTIONS[25] == "sadness"
    hub = pd.DataFrame(
        {"text": ["a", "b", "c"], "labels": [np.array([27]), np.array([17]), np.array([2])], "id": list("xyz")}
    )
    assert pairs(hub) == [("anger", "c"), ("joy", "b"), ("neutral", "a")]
    hub.assign(labels=["[27]", "[17]", "[2]"]).to_csv(tmp_path / "hub.csv", index=False)
    assert pairs(tmp_path / "hub.csv") == pairs(hub)


def test_one_column_for_each_label(tmp_path):
    table = pd.DataFrame(
        {
            "text": ["I love it", "meh", "both", "none"],
            "rater_id": [1, 0, 1, 0],
            "joy": [1, 0, 1, 0],
            "neutral": [0, 1, 1, 0],
        }
    )
    table.to_csv(tmp_path / "raw.csv", index=False)
    for source in (
        table,
        table.astype({"joy": float, "neutral": bool}).astype({"joy": int, "neutral": int}),
        tmp_path / "raw.csv",
    ):
        with pytest.warns(UserWarning, match="2 of 4 texts carry several labels or none"):
            assert pairs(source) == [("joy", "I love it"), ("neutral", "meh")]
    with pytest.raises(EmolabError, match="column 'joy' has no value in row 1"):
        labelled(table.assign(joy=[1, None, 0, 0]))
    with pytest.raises(EmolabError, match="no column 'label', but 'text', 'mood'"):
        labelled(pd.DataFrame({"text": ["a"], "mood": ["joy"]}))


def test_topics_pair_texts(tiny_llama):
    rows = [("park", "joy", "so good !"), ("park", "neutral", "a park ."), ("sea", "joy", "happy sea !")]
    rows += [("sea", "neutral", "a sea ."), ("rain", "joy", "glad rain .")]
    table = pd.DataFrame(rows, columns=["topic", "label", "text"])
    responses = responses_from_texts(table)
    assert list(responses["query_id"]) == ["park", "sea", "rain", "park", "sea"]
    assert list(responses["condition"]) == ["joy"] * 3 + ["neutral"] * 2
    with pytest.warns(UserWarning, match="1 responses under joy have no neutral one to the same query"):
        vectors = emolab.extract_vectors(tiny_llama, responses, sites=("resid",))
    assert vectors.meta["n_pairs"] == {"joy": 2}
    x = vectors.means.means["resid"].astype(np.float64)
    np.testing.assert_allclose(vectors.get("resid")[0], (x[0] + x[1] - x[3] - x[4]) / 2, rtol=1e-4, atol=1e-5)
    for topic in (None, " ", float("nan")):
        with pytest.raises(EmolabError, match=r"row 2 \(joy\) has no topic"):
            labelled(table.assign(topic=["a", "b", topic, "c", "d"]))


def test_starts_are_numbers_within_their_text(tmp_path):
    table = TABLE.assign(start=[3, 0, 13])
    table.to_csv(tmp_path / "starts.csv", index=False)
    for source in (table, table.astype({"start": float}), tmp_path / "starts.csv"):
        assert responses_from_texts(source)["start"].tolist() == [3, 13, 0]
    assert "start" not in responses_from_texts(TABLE)
    for start in (14, -1, 1.5, "x", None):
        with pytest.raises(EmolabError, match=r"start of row 2 \(joy\) is .*from 0 to 13"):
            responses_from_texts(TABLE.assign(start=[0, 0, start]))


def test_what_is_no_table_of_texts_is_refused(tmp_path):
    for bad, told in (
        ({"label": ["joy"], "text": ["a"]}, r"pandas.DataFrame\(texts\)"),
        (pd.DataFrame([("joy", "a", "b")], columns=["label", "text", "Text"]), "'text' 2 times"),
        ({"joy": TABLE}, "got something else"),
        ({"joy": {"a": 1}}, "got something else"),
        (pd.DataFrame({"label": ["joy", "neutral"], "text": ["a", 3]}), r"found 3 in row 1 \(neutral\)"),
        ({"joy": ["a"], "fear": [], "neutral": ["b"]}, "no text under 'fear'"),
        (pd.DataFrame({"label": ["joy", " "], "text": ["a", "b"]}), "rows without a label .row 1, 'b'"),
        (TABLE[:0], "there is none"),
    ):
        with pytest.raises(EmolabError, match=told):
            responses_from_texts(bad)
    (tmp_path / "bare.csv").write_text("joy,What a day\nneutral,a road\n")
    with pytest.raises(FileError, match="first line is 'joy,What a day', without a column 'text'"):
        responses_from_texts(tmp_path / "bare.csv")
    (tmp_path / "wide.csv").write_bytes("label,text\njoy,a\n".encode("utf-16"))
    with pytest.raises(FileError, match="in UTF-8"):
        responses_from_texts(tmp_path / "wide.csv")
    with pytest.raises(EmolabError, match="query hold"):
        responses_from_texts(TABLE, query=" ")
