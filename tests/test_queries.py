import json

import pytest

from emolab.errors import EmolabError
from emolab.queries import BUNDLED, COLUMNS, load_queries


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_labelled_dict_from_file_equals_in_memory(tmp_path):
    queries = {"joy": ["How was the party?", "Who won?"], "neutral": ["What is a map?"]}
    table = load_queries(write(tmp_path / "q.json", queries))
    assert tuple(table.columns) == COLUMNS
    assert table.equals(load_queries(queries)) and table.equals(load_queries(str(tmp_path / "q.json")))
    assert list(table["query_id"]) == ["u-0001", "u-0002", "u-0003"]
    assert list(table["emotion"]) == ["joy", "joy", "neutral"]
    assert set(table["split"]) == {"train"}


def test_plain_list_is_neutral():
    table = load_queries(["What is a map?", " What is a boat? "])
    assert set(table["emotion"]) == {"neutral"}
    assert list(table["query"]) == ["What is a map?", "What is a boat?"]


def test_bundled_format_and_ids_that_do_not_depend_on_the_split(tmp_path):
    row = {"emotion": "fear", "situation": "cellar"}
    rows = [{**row, "query": "A?", "split": "train"}, {**row, "query": "B?", "split": "heldout"}]
    path = write(tmp_path / "set.json", {"description": "two", "queries": rows})
    heldout = load_queries(path, split="heldout")
    assert heldout.to_dict("records") == [{"query_id": "u-0002", **rows[1]}]
    with pytest.raises(EmolabError, match="no split 'test'; they have heldout, train"):
        load_queries(path, split="test")


def test_repeated_queries_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="1 repeated"):
        assert len(load_queries({"joy": ["A?", "A?"], "fear": ["A?"]})) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "not valid JSON"),
        ([], "empty"),
        ({}, "empty"),
        ({"joy": "a string"}, "'joy' holds no list"),
        (["fine", "  "], "number 2"),
        (["fine", 3], "number 2 is 3"),
        (7, "are a int"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    with pytest.raises(EmolabError, match=message):
        load_queries(write(tmp_path / "bad.json", content))


def test_unknown_source_says_what_exists():
    with pytest.raises(EmolabError, match='"general", "mini"'):
        load_queries("no-such-set")


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_load(name):
    if not BUNDLED[name].exists():
        pytest.skip(f"{name} is not here yet")
    table = load_queries(name)
    assert table["query_id"].str.fullmatch(rf"{name[0]}-\d{{4}}").all() and table["query_id"].is_unique
    assert not table["query"].str.lower().duplicated().any()
    for split in table["split"].unique():
        assert load_queries(name, split=split).equals(table[table["split"] == split].reset_index(drop=True))
