"""Every reader of files against what is cut, flipped, forged or a bomb: the right thing, or one clear error."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from emolab import EmotionVectors, ResponseMeans
from emolab.answers.queries import load_queries
from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError, FileError
from emolab.base.storage import read_table, write_table
from emolab.plot.save import check_figures, read_manifest
from emolab.steering.gguf import from_gguf, to_gguf
from emolab.studies.figures import read_summary, run_figures
from emolab.studies.report import write_report
from emolab.vectors.exchange import from_published, from_tensors
from tests.damaging import damaged, few, json_values, outcome
from tests.made_means import make_means, orthogonal
from tests.refusing import readable
from tests.studies.test_report import run  # noqa: F401 - a fixture
from tools import editions
from tools.gallery import gallery, write_gallery
from tools.notebooks import read_notebook

SETTINGS = {"model": "m", "seed": 0}
QUERIES = {"joy": ["How was the party?", "What is a feast?"], "neutral": ["What is a map?"]}


def save_vectors(path: Path) -> None:
    data = torch.arange(2 * 3 * 4).reshape(2, 3, 4) / 7
    meta = {"model": "m", "fingerprint": "f" * 16, "part": "whole", "steps": ["specific"]}
    EmotionVectors({"resid": data, "attn": data * 2}, ("joy", "sadness"), torch.ones(3), meta).save(path)


def save_gguf(path: Path) -> None:
    save_vectors(path.with_suffix(".ev"))
    to_gguf(EmotionVectors.load(path.with_suffix(".ev")), path, {"joy": 1.0})


def save_table(path: Path) -> None:
    table = pd.DataFrame({"row": range(20), "text": [f"text {i}" for i in range(20)], "p": np.linspace(0, 1, 20)})
    write_table(table, path, dict(SETTINGS))


def save_notebook(path: Path) -> None:
    cells = [nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["a"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def of_folder(path: Path):
    return from_published(path.parent)


# What reads it, the name of the file there, what writes a sound one (or its text), and what is read from it.
READERS = {
    "ev": (EmotionVectors.load, "ev.safetensors", save_vectors, EmotionVectors),
    "means": (ResponseMeans.load, "means.safetensors",
        lambda path: make_means(orthogonal(5, 2, 8), n_queries=3).save(path), ResponseMeans),
    "tensors": (lambda path: from_tensors(path, site="resid"), "t.safetensors",
        lambda path: save_file({"joy": torch.ones(3, 4), "sadness.0": torch.ones(4)}, path), str),  # lacks layers
    "gguf": (from_gguf, "joy.gguf", save_gguf, EmotionVectors),
    "json": (of_folder, "m_joy.json", json.dumps({str(i): [[0.5, -1.0, 2.0]] for i in range(3)}), EmotionVectors),
    "table": (lambda path: read_table(path, dict(SETTINGS)), "sweep.parquet", save_table, pd.DataFrame),
    "queries": (load_queries, "queries.json", json.dumps(QUERIES), pd.DataFrame),
    "csv": (responses_from_texts, "texts.csv", 'label,text\njoy,What a day!\nneutral,"It is, a day."\n', pd.DataFrame),
    "notebook": (read_notebook, "a.ipynb", save_notebook, nbformat.NotebookNode),
    "summary": (lambda path: read_summary(path.parent), "summary.json",
        json.dumps({"model": "m", "steering": {"joy": {"best_alpha": 1.0}}}), dict),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The bytes of one sound file of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    for kind, (_, _, write, _) in READERS.items():
        write(folder / kind) if callable(write) else (folder / kind).write_text(write)
    return {kind: (folder / kind).read_bytes() for kind in READERS}


def sound(found, kind: str) -> None:
    """A message, or an object that can be used."""
    if isinstance(found, str):
        return
    if isinstance(found, EmotionVectors):
        shape = len(found.emotions), found.n_layers
        assert all(x.isfinite().all() and x.shape[:2] == shape for x in found.data.values())
        assert found.part("shared").emotions == ("shared",) and repr(found)
        assert len(set(found.emotions)) == len(found.emotions)
    elif isinstance(found, ResponseMeans):
        assert all(np.isfinite(x).all() and len(x) == len(found) for x in found.means.values())
        assert found.index["condition"].map(type).eq(str).all() and len(found.select([])) == 0
    elif kind in ("queries", "csv"):
        texts = found["query" if kind == "queries" else "text"]
        assert len(found) and texts.map(type).eq(str).all() and found["emotion"].str.strip().ne("").all()
        [text.encode() for text in texts]  # tokenizers take no lone surrogate
    elif kind == "notebook":
        nbformat.validate(found)
    else:
        assert isinstance(found, READERS[kind][3])


@pytest.mark.parametrize("kind", READERS)
def test_a_sound_file_is_read(whole, tmp_path, kind):
    read, name, _, type_ = READERS[kind]
    found = outcome(read, tmp_path / name, whole[kind])
    assert isinstance(found, type_)
    sound(found, kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
@few
@given(data=st.data())
def test_damaged_files_are_read_or_refused(whole, tmp_path, kind, data):
    read, name, _, _ = READERS[kind]
    sound(outcome(read, tmp_path / name, data.draw(damaged(whole[kind]))), kind)


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "csv"])
def test_files_cut_at_every_kind_of_place_are_refused(whole, tmp_path, kind):
    read, name, _, _ = READERS[kind]
    content = whole[kind].rstrip() if kind in ("queries", "notebook", "summary") else whole[kind]
    size = len(content)
    last = (size - 20, size - 17) if kind == "gguf" else (size - 8, size - 3)  # GGUF ends in padding
    for at in {0, 1, 3, 4, 7, 8, 9, 16, 24, 32, size // 3, size // 2, *last}:
        assert isinstance(outcome(read, tmp_path / name, content[:at]), str), at


# ---------------------------------------------------------------- safetensors


def forged(header: dict | bytes, payload: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + payload


META = {"format": "emolab-vectors-1", "json": "sites,emotions", "sites": '["resid"]', "emotions": '["joy"]'}
RESID = {"dtype": "F32", "shape": [1, 1, 2], "data_offsets": [0, 8]}
NORM = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}
PAYLOAD = np.ones(3, np.float32).tobytes()
FORGED = {
    "a header of 2**60 bytes": forged(b"{}", size=2**60),
    "a header longer than the file": forged(b"{}", size=3000),
    "a tensor of 2**62 bytes": forged({"resid": RESID | {"shape": [2**60], "data_offsets": [0, 2**62]}}),
    "a shape that overflows": forged({"resid": RESID | {"shape": [2**32, 2**32, 2**32]}}, PAYLOAD),
    "offsets beyond the end": forged({"__metadata__": META, "resid": RESID | {"data_offsets": [0, 800]}}, PAYLOAD),
    "offsets backwards": forged({"__metadata__": META, "resid": RESID | {"data_offsets": [8, 0]}}, PAYLOAD),
    "overlapping tensors": forged(
        {"__metadata__": META, "resid": RESID, "resid_norm": NORM | {"data_offsets": [4, 8]}}, PAYLOAD
    ),
    "nested too deep": forged(b'{"a":' * 50_000),
    "no JSON": forged(b"\xff\xfe{}"),
    "a number for a header": forged(b"3"),
    "metadata of numbers": forged({"__metadata__": {"format": 3}}),
    "no tensor": forged({"__metadata__": META}),
    "no norm": forged({"__metadata__": META, "resid": RESID}, PAYLOAD[:8]),
    "another kind": forged({"__metadata__": META | {"format": "x"}, "resid": RESID, "resid_norm": NORM}, PAYLOAD),
    "NaN inside": forged(
        {"__metadata__": META, "resid": RESID, "resid_norm": NORM}, np.full(3, np.nan, np.float32).tobytes()
    ),
    "a pickle": pickle.dumps({"joy": [1.0]}),
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED.keys())
@pytest.mark.parametrize("kind", ["ev", "means", "tensors"])
def test_forged_headers_are_refused(tmp_path, content, kind):
    read, name, _, _ = READERS[kind]
    assert isinstance(outcome(read, tmp_path / name, content), str)


@few
@given(
    meta=st.dictionaries(st.sampled_from(("sites", "emotions", "steps", "part", "model", "means")), json_values),
    coded=st.text(max_size=12),
)
def test_a_header_of_any_types_is_read_or_refused(tmp_path, meta, coded):
    header = META | {key: json.dumps(value) for key, value in meta.items()} | {"json": ",".join([*meta, coded])}
    content = forged({"__metadata__": header, "resid": RESID, "resid_norm": NORM}, PAYLOAD)
    sound(outcome(EmotionVectors.load, tmp_path / "ev.safetensors", content), "ev")


def means_file(path: Path, index: str, tensors: dict) -> Path:
    save_file(tensors, path, metadata={"format": "emolab-response-means-1", "json": "", "index": index})
    return path


@few
@given(index=json_values | st.fixed_dictionaries({"columns": json_values, "data": json_values}))
def test_an_index_of_any_type_is_read_or_refused(tmp_path, index):
    tensors = {"resid_norm": torch.ones(1, 1), "resid": torch.ones(1, 1, 2)}
    sound(outcome(ResponseMeans.load, means_file(tmp_path / "m.safetensors", json.dumps(index), tensors)), "means")


@pytest.mark.parametrize("site", ["resid", "attn", "head", "resid_norm"])
@pytest.mark.parametrize(
    "value", [torch.full((6, 2, 8), torch.nan), torch.ones(6, 3, 8), torch.ones(5, 2, 8), torch.ones(6)]
)
def test_means_of_odd_shapes_and_values_are_refused(tmp_path, site, value):
    index = pd.DataFrame({"query_id": [*"aabbcc"], "emotion": "neutral", "condition": ["neutral", "joy"] * 3})
    index = index.assign(n_tokens=3).to_json(orient="split", index=False)
    tensors = {"resid": torch.ones(6, 2, 8), "resid_norm": torch.ones(6, 2), site: value}
    path = means_file(tmp_path / "m.safetensors", index, tensors)
    assert "without a fitting index" in outcome(ResponseMeans.load, path)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a/b", "\\\\host\\x", "joy\n", "<script>", " "])
def test_names_in_files_are_labels_and_no_paths(tmp_path, name):
    save_file({name: torch.ones(3, 4)}, tmp_path / "t.safetensors")
    found = outcome(READERS["tensors"][0], tmp_path / "t.safetensors")
    assert found.emotions == (name,) if name.strip() else "label" in found


def test_folders_links_and_devices_are_no_files(tmp_path):
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("loop.safetensors", "folder.safetensors", "absent.safetensors"):
        for kind in ("ev", "means", "tensors", "gguf"):
            assert isinstance(outcome(READERS[kind][0], tmp_path / name), str)
    if os.path.exists("/dev/full"):
        with pytest.raises(ValueError, match="/dev/full"):
            EmotionVectors.load("/dev/full")


# ---------------------------------------------------------------- GGUF: header, key-values, tensor infos


def gguf(n_tensors: int = 0, n_keys: int = 0, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + body


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ARCH = text("general.architecture") + struct.pack("<I", 8) + text("controlvector")


def tensor(name: str, dims: tuple[int, ...], offset: int = 0, kind: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


BOMBS = {
    "2**60 tensors": gguf(2**60, 1, ARCH),
    "2**60 keys": gguf(0, 2**60, ARCH * 3),
    "a key of 2**60 letters": gguf(0, 1, struct.pack("<Q", 2**60)),
    "an array of 2**60 numbers": gguf(0, 2, ARCH + text("x") + struct.pack("<IIQ", 9, 4, 2**60)),
    "arrays in arrays": gguf(0, 2, ARCH + text("x") + struct.pack("<IIQ", 9, 9, 2) * 500),
    "2**30 axes": gguf(1, 1, ARCH + text("direction.1") + struct.pack("<I", 2**30)),
    "a tensor of 2**60 numbers": gguf(1, 1, ARCH + tensor("direction.1", (2**60,))),
    "axes that overflow": gguf(1, 1, ARCH + tensor("direction.1", (2**33, 2**33))),
    "a tensor beyond the end": gguf(1, 1, ARCH + tensor("direction.1", (4,), offset=2**40)),
    "an unknown type": gguf(1, 1, ARCH + tensor("direction.1", (4,), kind=999)),
    "many tensors in one place": gguf(
        2000, 1, ARCH + b"".join(tensor(f"direction.{i + 1}", (200_000,)) for i in range(2000)) + b"\0" * 900_000
    ),
    "NaN": gguf(1, 1, ARCH + tensor("direction.1", (4,)) + b"\0" * 16 + np.full(40, np.nan, np.float32).tobytes()),
    "another byte order": b"GGUF" + struct.pack(">IQQ", 3, 2**60, 1),
    "another version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_gguf_bombs_are_refused(tmp_path, content):
    assert isinstance(outcome(from_gguf, tmp_path / "joy.gguf", content), str)


# ---------------------------------------------------------------- JSON, CSV, tables


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
    read, name, _, _ = READERS[kind]
    found = outcome(read, tmp_path / name, content)
    harmless = ("UTF-16",) if kind == "queries" else ("UTF-16", "a null byte", "NaN", "a lone surrogate")
    assert isinstance(found, str) or (kind != "notebook" and content in [TEXTS[name] for name in harmless]), found


def test_a_layer_that_stands_twice_is_refused(tmp_path):
    assert "occurs twice" in outcome(of_folder, tmp_path / "m_joy.json", b'{"0": [[1.0]], "0": [[2.0]]}')


ANY_JSON = {
    "json": json_values
    | st.dictionaries(st.sampled_from("012"), json_values | st.lists(st.lists(st.floats(), max_size=3), max_size=2)),
    "queries": json_values
    | st.dictionaries(st.text(max_size=4), st.lists(st.text(max_size=6), max_size=3), max_size=3),
    "notebook": st.fixed_dictionaries(
        {"cells": st.lists(json_values, max_size=1), "metadata": json_values, "nbformat": st.just(4)}
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ANY_JSON)
@few
@given(data=st.data())
def test_json_of_any_types_is_read_or_refused(tmp_path, kind, data):
    read, name, _, _ = READERS[kind]
    path = tmp_path / name.replace("a.ipynb", "a_solution.ipynb")
    content = data.draw(ANY_JSON[kind])
    content = content | {"nbformat_minor": 5} if kind == "notebook" else content
    found = outcome(read, path, json.dumps(content).encode())
    sound(found, kind)
    if kind == "notebook" and isinstance(found, str):
        assert isinstance(outcome(editions.build, path), str)


@pytest.mark.filterwarnings("ignore:.*(stand there more than once|stand under several|differ by one letter)")
@few
@given(
    rows=st.lists(st.lists(st.text(max_size=6), max_size=4), max_size=4),
    ends=st.sampled_from(("\n", "\r\n", "\0", '"')),
)
def test_csv_of_any_text_is_read_or_refused(tmp_path, rows, ends):
    content = ends.join(["label,text", *(",".join(row) for row in rows)]).encode("utf-8", "replace")
    sound(outcome(responses_from_texts, tmp_path / "t.csv", content), "csv")


@few
@given(attrs=json_values)
def test_a_table_with_any_settings_is_read_or_refused(tmp_path, attrs):
    table = pd.DataFrame({"text": ["a"]})
    table.attrs["emolab"] = attrs
    table.to_parquet(tmp_path / "t.parquet", index=False)
    found = outcome(READERS["table"][0], tmp_path / "t.parquet")
    assert isinstance(found, str) or attrs == SETTINGS


# ---------------------------------------------------------------- figures and runs


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
        for read in (read_manifest, check_figures, write_gallery, lambda folder: write_report(folder.parent)):
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
@given(
    key=st.sampled_from(
        "model setting seed n_queries steering claims baselines geometry instruction_following".split()
    ),
    value=json_values,
)
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


@pytest.mark.parametrize(
    "file", ["summary.json", "scores.parquet", "manifest.json", "figures/manifest.json", "figures/norms.svg"]
)
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
