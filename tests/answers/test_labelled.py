"""Labelled texts of a user: every row is accounted for, or one error names it."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
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
        (["joy", "neutral", "jo\u200by"], r"'joy' \(row 0\) and 'jo\\u200by' \(row 2\), which differ only by case, "),
        (["jäh", "neutral", "ja\u0308h"], r"'j\\xe4h' \(row 0\) and 'ja\\u0308h' \(row 2\)"),
        (["joy", "neutral", "Joy"], r"'joy' \(row 0\) and 'Joy' \(row 2\)"),
        (["Neutral", "joy", "fear"], r"'Neutral' \(row 0\), which is 'neutral' but for case or space"),
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


def test_labels_are_trimmed(tmp_path):
    odd = pd.DataFrame({"label": [" joy", "neutral\u00a0", "joy\u200b"], "text": ["a", "b", "c"]})
    odd.to_csv(tmp_path / "odd.csv", index=False)
    for source in (odd, {" joy": ["a"], "neutral\u00a0": ["b"], "joy\u200b": ["c"]}, tmp_path / "odd.csv"):
        assert pairs(source) == [("joy", "a"), ("joy", "c"), ("neutral", "b")]


def test_labels_that_are_numbers_are_whole(tmp_path):
    for labels in ([1.0, 0.0, 1.0], [1, 0, 1], ["1.0", "0.0", "1.0"], pd.array([1, 0, 1], dtype="Int64")):
        table = pd.DataFrame({"label": labels, "text": ["a", "b", "c"]})
        table.to_csv(tmp_path / "numbers.csv", index=False)
        assert pairs(table) == pairs(tmp_path / "numbers.csv") == [("0", "b"), ("1", "a"), ("1", "c")]
    assert pairs(pd.DataFrame({"label": ["1.5", "1.0"], "text": ["a", "b"]})) == [("1.0", "b"), ("1.5", "a")]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.astype("category"),
        lambda t: t.astype("string"),
        lambda t: t.convert_dtypes(dtype_backend="pyarrow"),
        lambda t: t.set_axis([7, 7, 7]),
        lambda t: t.set_index(["Label", "text"]),
        lambda t: t.set_index("Label"),
        lambda t: t.to_dict("records"),
        pa.Table.from_pandas,
    ],
)
def test_tables_of_any_make_are_read(change):
    assert pairs(change(TABLE.rename(columns={"label": "Label"}))) == sorted(ROWS)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_is_read_in_every_form(suffix, tmp_path):
    path = tmp_path / f"texts.{suffix}"
    TABLE.to_json(path, orient="records", lines=True)
    assert pairs(path) == sorted(ROWS)
    if suffix == "json":
        for orient in ("records", "columns"):
            TABLE.to_json(path, orient=orient, indent=2)
            assert pairs(path) == sorted(ROWS)
        path.write_text('{"joy": ["What a day!", "He said \\"yes\\""], "neutral": ["It is a day, then"]}')
        assert pairs(path) == sorted(ROWS)


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.json", '{"joy": ["a"], "joy": ["b"]}', r"a.json as JSON \(from line 1 on: 'joy' occurs twice"),
        ("a.jsonl", '{"label": "joy", "text": "a"}\n{"label": "joy", ', "from line 2 on: Expecting"),
        ("a.json", '[{"label": "joy", "text": "a"}, {"label": "joy"}]', r"found nan in row 1 \(joy\)"),
        ("a.json", '[{"label": null, "text": "a"}]', "rows without a label .row 0, 'a'"),
        ("a.json", '{"label": ["joy", "fear"], "text": ["a"]}', "the columns in .*a.json do not fit each other"),
        ("a.json", "3", "got something else"),
        ("a.parquet", "label,text\njoy,a\n", "damaged or no parquet file"),
        ("a.csv", "", "as CSV"),
        ("a.csv", "label,text\njoy,a\nlabel,text\nneutral,b\n", "row 1 reads 'label', 'text', .*like a header"),
        ("a.csv", "label,text\njoy,a\n# of 2020, I think\n", "row 1 reads '# of 2020', .*like a comment"),
        ("a.csv", "label,text\njoy,a\n,\nneutral,b\n", "rows without a label .row 1, ''"),
        ("a.csv", "label,text\njoy,a\nneutral,b\0c\n", "line 3 of .*a.csv holds a NUL byte"),
        ("a.csv", "label,text\njoy,été\n".encode("latin-1"), "line 2 of .*not in UTF-8.*encoding='latin-1'"),
        ("a.csv", "label,text\njoy,a\n".encode("utf-16")[:-1], "not in UTF-16"),
        ("a.tsv", "a\t27\tx\nb\t28\ty\n", "label 28 is none of GoEmotions, which has 0 to 27"),
        ("a.csv", "text,joy,fear\na,1,0\nb,0,2\n", "column 'fear' has '2' in row 1; expected 0 or 1"),
    ],
)
def test_files_that_would_lose_a_row_are_refused(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EmolabError, match=told) as caught:
        responses_from_texts(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_ends_of_lines(encoding, end, tmp_path):
    lines = ["sep=;", "label;text", "joy;été\u2028et \x85fin", "", "neutral;b", ""]
    (tmp_path / "a.csv").write_bytes(end.join(lines).encode(encoding))
    assert pairs(tmp_path / "a.csv") == [("joy", "été\u2028et \x85fin"), ("neutral", "b")]
    lines = ["été\u2028et \x85fin\t17\tx", "b\t27\ty", ""]
    (tmp_path / "a.tsv").write_bytes(end.join(lines).encode(encoding))
    assert pairs(tmp_path / "a.tsv") == [("joy", "été\u2028et \x85fin"), ("neutral", "b")]


def test_words_that_mean_missing_elsewhere_are_texts(tmp_path):
    (tmp_path / "a.csv").write_text("label,text\nNA,null\nneutral,nan\n")
    assert pairs(tmp_path / "a.csv") == [("NA", "null"), ("neutral", "nan")]


def test_parquet_is_read(tmp_path):
    TABLE.set_axis(["label", "Text"], axis=1).to_parquet(tmp_path / "a.parquet")
    assert pairs(str(tmp_path / "a.parquet")) == sorted(ROWS)


def test_tabs_without_quoting_keep_each_line_a_row(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('label\ttext\njoy\t"What a day!\nneutral\tIt is a day"\njoy\tHe left\n')
    assert pairs(path) == [("joy", '"What a day!'), ("joy", "He left"), ("neutral", 'It is a day"')]
    path.write_text('label\ttext\njoy\t"What ""a""\nday!"\nneutral\t"b"\n')
    assert pairs(path) == [("joy", 'What "a"\nday!'), ("neutral", "b")]


@pytest.mark.parametrize(
    "content, told",
    [
        ('id,label,text\n1,joy,"What a day!\n2,neutral,It is a day"\n3,joy,He left\n', r"row 0 \(joy\).*'neutral,'"),
        ('text,label,id\n"What a day!,joy,1\nIt is",neutral,2\nHe left,joy,3\n', r"row 0 \(neutral\).*'joy,'"),
        ('label,text\njoy,a\nfear,"b\nanger,c"\nneutral,d\n', r"row 1 \(fear\).*'anger,'"),
        ('label,text\njoy,"a\nneutral, It is"\nneutral,d\n', r"row 0 \(joy\).*'neutral,'"),
    ],
)
def test_merged_rows_are_seen_in_any_column_and_of_any_emotion(content, told, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(EmolabError, match=f"{told}, as if a lost quotation mark had merged rows"):
        responses_from_texts(tmp_path / "a.csv")
    poem = pd.DataFrame({"label": ["joy", "neutral"], "text": ["Hope,\njoy, and peace\nlove", "joy\nagain"]})
    assert pairs(poem) == sorted(poem.itertuples(index=False, name=None))


def test_texts_that_stand_there_twice_are_told_once():
    table = pd.DataFrame({"label": ["joy", "joy", "fear", "neutral"], "text": ["a b", "A  b", "a b", "b"]})
    told = r"1 texts stand there more than once \(row 1 \(joy\) repeats row 0\); 1 texts stand under several labels "
    with pytest.warns(UserWarning, match=told + r"\(row 0 \(joy\) is row 2 \(fear\): 'a b'\)") as caught:
        assert len(responses_from_texts(table)) == 4
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="^1 texts stand under several labels"):
        responses_from_texts({"joy": ["a", "a"], "fear": ["a"], "neutral": ["b"]})
    topics = table.assign(topic=["x", "y", "x", "x"], label=["joy", "joy", "joy", "neutral"])[[True, True, False, True]]
    with warnings.catch_warnings(action="error"):
        labelled(topics)


def test_labels_that_differ_by_one_letter_are_told():
    for pair in (("joy", "joys"), ("happiness", "hapiness")):
        with pytest.warns(UserWarning, match="labels '.*' and '.*' differ by one letter"):
            labelled({pair[0]: ["a"], pair[1]: ["b"], "neutral": ["c"]})
    with warnings.catch_warnings(action="error"):
        labelled({name: [name] for name in ("moral", "amoral", "class1", "class11", *GOEMOTIONS)})


def test_columns_that_are_no_labels_are_passed_over(tmp_path):
    raw = pd.DataFrame(
        {"text": ["I love it", "meh"], "id": ["x", "y"], "example_very_unclear": [False, False], "rater_id": [1, 0]}
    ).assign(joy=["TRUE", "FALSE"], neutral=["false", "true"])
    raw.to_csv(tmp_path / "raw.csv")  # with an unnamed index of 0 and 1
    assert pairs(tmp_path / "raw.csv") == [("joy", "I love it"), ("neutral", "meh")]


def test_what_is_no_table_of_texts_is_refused(tmp_path):
    for bad, told in (
        ({"label": ["joy"], "text": ["a"]}, r"pandas.DataFrame\(texts\)"),
        (pd.DataFrame([("joy", "a", "b")], columns=["label", "text", "Text"]), "'text' 2 times"),
        ({"joy": TABLE}, "got something else"),
        ({"joy": {"a": 1}}, "got something else"),
        (pd.DataFrame({"label": ["joy"]}), "no column 'text'"),
        (pd.DataFrame({"label": ["joy", "neutral"], "text": ["a", 3]}), r"found 3 in row 1 \(neutral\)"),
        (pd.DataFrame({"label": ["joy", "neutral"], "text": ["a", None]}), "needs texts"),
        ({"joy": ["a"], "fear": [], "neutral": ["b"]}, "no text under 'fear'"),
        (pd.DataFrame({"label": ["joy", " "], "text": ["a", "b"]}), "rows without a label .row 1, 'b'"),
        (TABLE[:0], "there is none"),
    ):
        with pytest.raises(EmolabError, match=told):
            responses_from_texts(bad)
    (tmp_path / "bare.csv").write_text("joy,What a day\nneutral,a road\n")
    with pytest.raises(FileError, match="first line is 'joy,What a day', without a column 'text'"):
        responses_from_texts(tmp_path / "bare.csv")
    with pytest.raises(EmolabError, match="query hold"):
        responses_from_texts(TABLE, query=" ")
