"""Every reader of tables, queries, texts, manifests, summaries, runs and notebooks against damaged, hostile files."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emolab import plot
from emolab.answers.queries import load_queries
from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError, FileError
from emolab.base.storage import read_table, write_json, write_table
from emolab.comparisons.lora import fit_lora
from emolab.plot.save import check_figures, read_manifest
from emolab.studies.figures import read_summary, run_figures
from emolab.studies.report import write_report
from tests.damaging import damaged, few, json_values, outcome
from tests.refusing import readable
from tests.studies.test_report import run  # noqa: F401 - a fixture
from tools import editions
from tools.gallery import gallery
from tools.notebooks import read_notebook

SETTINGS = {"model": "m", "seed": 0}
QUERIES = {"joy": ["How was the party?", "What is a feast?"], "neutral": ["What is a map?"]}


def saved(folder: Path) -> dict[str, bytes]:
    table = pd.DataFrame({"row": range(20), "text": [f"text {i}" for i in range(20)], "p": np.linspace(0, 1, 20)})
    write_table(table, folder / "table", dict(SETTINGS))
    (folder / "queries").write_text(json.dumps(QUERIES))
    (folder / "csv").write_text("label,text\njoy,What a day!\nneutral,\"It is, a day.\"\n")
    cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["a"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebook")
    (folder / "summary").write_text(json.dumps({"model": "m", "steering": {"joy": {"best_alpha": 1.0}}}))
    return {name: (folder / name).read_bytes() for name in ("table", "queries", "csv", "notebook", "summary")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole"))


READERS = {
    "table": (lambda path: read_table(path, dict(SETTINGS)), "sweep.parquet", pd.DataFrame),
    "queries": (load_queries, "queries.json", pd.DataFrame),
    "csv": (responses_from_texts, "texts.csv", pd.DataFrame),
    "notebook": (read_notebook, "a.ipynb", nbformat.NotebookNode),
    "summary": (lambda path: read_summary(path.parent), "summary.json", dict),
}


def sound(found, kind: str) -> None:
    assert isinstance(found, (str, READERS[kind][2]))
    if kind in ("queries", "csv") and not isinstance(found, str):
        texts = found["query" if kind == "queries" else "text"]
        assert len(found) and texts.map(type).eq(str).all() and found["emotion"].str.strip().ne("").all()
        json.dumps(list(texts)).encode() and [text.encode() for text in texts]  # tokenizers take no lone surrogate
    if kind == "notebook" and not isinstance(found, str):
        nbformat.validate(found)


@pytest.mark.parametrize("kind", READERS)
def test_a_sound_file_is_read(whole, tmp_path, kind):
    read, name, type_ = READERS[kind]
    assert isinstance(outcome(read, tmp_path / name, whole[kind]), type_)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
@few
@given(data=st.data())
def test_damaged_files_are_read_or_refused(whole, tmp_path, kind, data):
    read, name, _ = READERS[kind]
    sound(outcome(read, tmp_path / name, data.draw(damaged(whole[kind]))), kind)


@pytest.mark.parametrize("kind", ["table", "queries", "notebook", "summary"])
def test_files_cut_at_every_kind_of_place_are_refused(whole, tmp_path, kind):
    read, name, _ = READERS[kind]
    size = len(whole[kind])
    for at in {0, 1, 3, 4, 8, size // 3, size // 2, size - 8, size - 3}:
        assert isinstance(outcome(read, tmp_path / name, whole[kind][:at].rstrip()), str), at


TEXTS = {
    "not UTF-8": b'{"joy": ["caf\xe9"]}',
    "UTF-16": json.dumps(QUERIES).encode("utf-16"),
    "a null byte": b'{"joy": ["a\x00b"]}',
    "nested too deep": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "a number of many digits": b"[" + b"9" * 10_000 + b"]",
    "infinity": b"Infinity",
    "NaN": b'{"joy": [NaN]}',
    "a key twice": b'{"joy": ["one"], "joy": ["two"]}',
    "a lone surrogate": b'{"joy": ["\\ud800"]}',
    "nothing": b"",
    "white space": b" \n\n",
    "two documents": b"{}{}",
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("kind", ["queries", "notebook", "summary"])
def test_hostile_json_is_refused(tmp_path, content, kind):
    read, name, _ = READERS[kind]
    found = outcome(read, tmp_path / name, content)
    harmless = ("UTF-16",) if kind == "queries" else ("UTF-16", "a null byte", "NaN", "a lone surrogate")
    assert isinstance(found, str) or (kind != "notebook" and content in [TEXTS[name] for name in harmless]), found


@pytest.mark.filterwarnings("ignore")
@few
@given(content=json_values | st.dictionaries(st.text(max_size=4), st.lists(st.text(max_size=6), max_size=3),
    max_size=3))
def test_queries_of_any_types_are_read_or_refused(tmp_path, content):
    sound(outcome(load_queries, tmp_path / "q.json", json.dumps(content).encode()), "queries")


@few
@given(rows=st.lists(st.lists(st.text(max_size=6), max_size=4), max_size=4), ends=st.sampled_from(("\n", "\r\n", "\0",
    '"')))
def test_csv_of_any_text_is_read_or_refused(tmp_path, rows, ends):
    content = ends.join(["label,text", *(",".join(row) for row in rows)]).encode("utf-8", "replace")
    sound(outcome(responses_from_texts, tmp_path / "t.csv", content), "csv")


@few
@given(attrs=json_values)
def test_a_table_with_any_settings_is_read_or_refused(tmp_path, attrs):
    table = pd.DataFrame({"text": ["a"]})
    table.attrs["emolab"] = attrs
    table.to_parquet(tmp_path / "t.parquet", index=False)
    found = outcome(lambda path: read_table(path, dict(SETTINGS)), tmp_path / "t.parquet")
    assert isinstance(found, str) or attrs == SETTINGS


# Figures, runs


def test_an_absent_folder_of_figures_is_not_well(tmp_path):
    assert check_figures(tmp_path / "absent") == [f"there is no folder {tmp_path / 'absent'}"]
    assert check_figures(tmp_path) == []


@pytest.fixture
def figures(run):  # noqa: F811
    return run / "figures"


PLACES = ("../../secret", "/etc/hostname", "a/../../secret", "link", "a\0b", 3, None, ["x"])


@pytest.mark.parametrize("kind", ["svg", "png", "csv"])
def test_files_of_a_manifest_stay_in_its_folder(figures, kind):
    (figures.parent.parent / "secret").write_text("secret")
    (figures / "link").symlink_to(figures.parent.parent / "secret")
    manifest = json.loads((figures / "manifest.json").read_text())
    for place in PLACES:
        manifest["norms"]["files"][kind] = place
        (figures / "manifest.json").write_text(json.dumps(manifest))
        for read in (read_manifest, check_figures, lambda folder: write_report(folder.parent)):
            with pytest.raises(FileError, match="no entry of save_figure") as caught:
                read(figures)
            readable(str(caught.value))


@few
@given(entry=json_values, name=st.text(max_size=6))
def test_a_manifest_of_any_types_is_read_or_refused(tmp_path, entry, name):
    (tmp_path / "manifest.json").write_text(json.dumps({name: entry}))
    found = outcome(lambda path: (read_manifest(path.parent), check_figures(path.parent)), tmp_path / "manifest.json")
    assert isinstance(found, str)
    found = outcome(lambda path: read_manifest(path.parent), tmp_path / "manifest.json", json.dumps(entry).encode())
    assert isinstance(found, str) or found == {} and gallery(found)


@few
@given(data=st.data())
def test_a_damaged_manifest_is_read_or_refused(figures, data):
    sound_one = (figures / "manifest.json").read_bytes()
    content = data.draw(damaged(sound_one))
    found = outcome(lambda path: gallery(read_manifest(path.parent)), figures / "manifest.json", content)
    (figures / "manifest.json").write_bytes(sound_one)
    assert isinstance(found, str)


@few
@given(key=st.sampled_from(("model", "setting", "seed", "n_queries", "steering", "claims", "baselines", "geometry",
    "instruction_following")), value=json_values)
def test_a_report_of_any_summary_is_written_or_refused(run, key, value):  # noqa: F811
    summary = json.loads((run / "summary.json").read_text())
    (run / "report.html").unlink(missing_ok=True)
    (run / "summary.json").write_text(json.dumps(summary | {key: value}))
    try:
        assert write_report(run).is_file()
    except EmolabError as error:
        readable(str(error).replace(str(run), "/"))
        assert not (run / "report.html").exists()
    (run / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize("file", ["summary.json", "scores.parquet", "manifest.json", "figures/manifest.json",
    "figures/norms.svg"])
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"[]", None])
def test_a_report_of_a_run_that_lost_a_file_is_refused(run, file, damage):  # noqa: F811
    content = (run / file).read_bytes()
    (run / file).unlink()
    if damage is not None:
        (run / file).write_bytes(damage(content))
    if file == "figures/norms.svg" and damage is not None or (file, damage) == ("figures/manifest.json", None):
        return  # a picture is shown as it is; a run may have no figures
    if file == "manifest.json" and damage is not None and damage(content) == b"[]":
        return  # provenance is printed as it is
    for draw in (write_report, run_figures) if file in ("summary.json", "scores.parquet") else (write_report,):
        with pytest.raises(EmolabError) as caught:
            draw(run)
        readable(str(caught.value).replace(str(run), "/"))
    assert not (run / "report.html").exists()


# Sharing, notebooks, names


@few
@given(cell=json_values, metadata=json_values)
def test_a_notebook_of_any_cells_is_read_or_refused(tmp_path, cell, metadata):
    content = json.dumps({"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}).encode()
    found = outcome(read_notebook, tmp_path / "a_solution.ipynb", content)
    assert isinstance(found, (str, nbformat.NotebookNode))
    if isinstance(found, str):
        assert isinstance(outcome(editions.build, tmp_path / "a_solution.ipynb"), str)


def test_labels_of_adapters_stay_in_their_folder(tiny_gpt2, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("emolab.comparisons.lora.read_tensors", lambda path, kind: asked.append(Path(path)) or 1 / 0)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    table = pd.DataFrame({"query_id": [*"abc"], "query": [*"abc"], "prompt": "tell me", "text": "so it was"})
    table = pd.concat([table.assign(condition=condition) for condition in ("neutral", "../../x")])
    with pytest.raises(ZeroDivisionError):
        fit_lora(tiny_gpt2, table, "../../x", out=tmp_path, progress=False)
    assert [path.parent for path in asked] == [tmp_path]


def test_a_figure_cannot_be_named_out_of_its_folder(tmp_path):
    with pytest.raises(EmolabError, match="figure name"):
        plot.save_figure(None, "../x", caption="a", alt="b", directory=tmp_path)
    write_json(tmp_path / "manifest.json", {"../x": {}})
    with pytest.raises(FileError):
        read_manifest(tmp_path)
