import json
import warnings

import pandas as pd
import pytest

from emolab.answers.queries import _ID_LETTERS, BUNDLED, COLUMNS, load_queries
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS


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


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(EmolabError, match="bad.json cannot be read as JSON"):
        load_queries(write(tmp_path / "bad.json", "{not json"))
    with pytest.raises(EmolabError, match="queries '.*bad.json' are a int"):
        load_queries(write(tmp_path / "bad.json", 7))


def test_unknown_source_says_what_exists():
    with pytest.raises(EmolabError, match='give "general", "everyday", the path'):
        load_queries("no-such-set")


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_load(name):
    if not BUNDLED[name].exists():
        pytest.skip(f"{name} is not here yet")
    table = load_queries(name)
    assert table["query_id"].str.fullmatch(rf"{_ID_LETTERS[name]}-\d{{4}}").all() and table["query_id"].is_unique
    assert not table["query"].str.lower().duplicated().any()
    for split in table["split"].unique():
        assert load_queries(name, split=split).equals(table[table["split"] == split].reset_index(drop=True))


def test_n_spreads_over_emotions_and_situations():
    for split, n in (("train", 24), ("heldout", 30), (None, 7)):
        few = load_queries("general", split=split, n=n)
        assert len(few) == n and list(few.index) == list(range(n))
        counts = few["emotion"].value_counts()
        assert len(counts) == 6 and counts.max() - counts.min() <= 1
        assert few["situation"].is_unique and (split is None or set(few["split"]) == {split})
        assert few.equals(load_queries("general", split=split, n=n + 5).head(n)), "a larger n goes on"
        assert set(few["query_id"]) <= set(load_queries("general", split=split)["query_id"])
    whole = load_queries("general", n=286)
    assert sorted(whole["query_id"]) == list(load_queries("general")["query_id"])
    assert whole["situation"].iloc[:285].is_unique and whole["situation"].iloc[285] == "stolen-credit"


def test_n_of_ones_own_takes_the_labels_in_turn():
    own = {"joy": ["A?", "B?", "C?"], "fear": ["D?"], "neutral": ["E?", "F?"]}
    assert load_queries(own, n=5)["query"].tolist() == ["A?", "D?", "E?", "B?", "F?"]
    assert load_queries(["A?", "B?", "C?"], n=2)["query_id"].tolist() == ["u-0001", "u-0002"]
    unseen = load_queries(own, against=["X?"], split="heldout", n=4)
    assert unseen["query_id"].tolist() == ["e-0001", "e-0004", "e-0005", "e-0002"]


@pytest.mark.parametrize(("n", "message"), [(0, "n is 0"), (2.5, "n is 2.5"), (True, "is True"), (3, "are 2, n is 3")])
def test_wrong_n_is_one_clear_error(n, message):
    with pytest.raises(EmolabError, match=message):
        load_queries(["A?", "B?"], n=n)


def warned(call):
    """What `call` returns, and its one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = call()
    assert len(caught) == 1 and caught[0].filename == __file__
    return table, str(caught[0].message)


def test_clean_queries_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_queries({"joy": ["Who won?"], "fear": ["Who won?"]})
        for name in BUNDLED:
            load_queries(name)


def test_evaluation_items_of_the_extraction_set_are_marked_or_dropped(tmp_path):
    train = load_queries({"anger": ["How was the queue?", "Who took it?"], "neutral": ["What is a map?"]})
    items = ["how was  the queue?", "What is a map?", "What is a map?", "Pass the salt.", "When is it?"]
    path = write(tmp_path / "eval.json", items)
    marked, message = warned(lambda: load_queries(path, against=train))
    assert (
        '3 of 5 stand in the extraction set too (kept, with the split "train")' in message and "1 repeated" in message
    )
    assert list(marked["split"]) == ["train", "train", "heldout", "heldout"] and set(marked["emotion"]) == {"neutral"}
    assert not set(marked["query_id"]) & set(train["query_id"]), "both tables can be joined"
    unseen, message = warned(lambda: load_queries(path, against=train, split="heldout"))
    assert "(left out)" in message and list(unseen["query"]) == items[3:]
    assert list(unseen["query_id"]) == list(marked["query_id"][2:])
    assert load_queries(items[3:], against=list(train["query"])).equals(load_queries(items[3:], against=train))
    everything = pd.concat([train, unseen])
    assert everything["query_id"].is_unique and set(everything["split"]) == {"train", "heldout"}


def test_against_takes_a_file_and_warns_of_the_evaluation_set_alone(tmp_path):
    extraction = write(tmp_path / "train.json", {"joy": ["Who won?", "who WON?"]})
    table, message = warned(lambda: load_queries({"joy": ["who WON?", "New?"]}, against=extraction))
    assert message == 'these queries: 1 of 2 stand in the extraction set too (kept, with the split "train")'
    with pytest.raises(EmolabError, match="no split 'heldout'"), pytest.warns(UserWarning):
        load_queries(["Who won?"], against=extraction, split="heldout")


def test_the_papers_evaluation_order_as_the_docstring_says():
    items = [f"{e} {i}?" for e in ("a", "d", "f", "j", "s") for i in range(50)] + [f"n {i}?" for i in range(150)]
    labelled = {e: items[50 * i : 50 * (i + 1)] for i, e in enumerate(EMOTIONS)} | {"neutral": items[250:]}
    with pytest.warns(UserWarning, match="1 of 400"):
        table = load_queries(labelled, against=["a 0?"])
    assert table.groupby("emotion").size().to_dict() == {**dict.fromkeys(EMOTIONS, 50), "neutral": 150}
    assert table["query"].str[0].groupby(table["emotion"]).unique().str[0].to_dict() == {
        "anger": "a", "disgust": "d", "fear": "f", "joy": "j", "neutral": "n", "sadness": "s",
    }  # fmt: skip
