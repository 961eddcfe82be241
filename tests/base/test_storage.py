"""Files are whole or absent, the same bytes from the same content, and kept results are read only where they fit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pandas as pd
import pytest
import torch

import emolab
from emolab.base import storage
from emolab.base.errors import FileError, MismatchError, ResourceError
from emolab.base.folders import writing
from emolab.base.storage import atomic, kept, read_table, read_tensors, stable, write_json, write_table, write_tensors


def test_a_file_is_replaced_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "deep/er/file.txt"
    with atomic(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.parent == path.parent
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("second")
        raise KeyboardInterrupt
    with pytest.raises(ResourceError, match=r"cannot write .*file.txt \(No space left on device\); what was written"):
        with atomic(path) as temporary:
            temporary.write_text("third")
            raise OSError(28, "No space left on device")
    assert path.read_text() == "first" and os.listdir(path.parent) == ["file.txt"]


def test_the_content_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    write_json(tmp_path / "a.json", 1)
    assert done == ["sync", "replace"]


def test_tensors_are_the_same_bytes_every_time(tmp_path):
    tensors = {name: torch.arange(6.0).reshape(2, 3) for name in "abc"}
    meta = {"größe": "ü\n\"'\\", **{f"key{i}": [i, {"x": "é"}] for i in range(20)}}
    written = []
    for i in range(6):  # safetensors alone would shuffle 22 keys
        write_tensors(tmp_path / f"{i}", "kind", tensors, meta)
        written.append((tmp_path / f"{i}").read_bytes())
    assert len(set(written)) == 1 and b"key19" in written[0]
    read, header = read_tensors(tmp_path / "0", "kind")
    assert header == meta and list(header) == sorted(meta) and all(torch.equal(read[k], tensors[k]) for k in tensors)
    write_tensors(tmp_path / "0", "kind", dict(reversed(tensors.items())), dict(reversed(meta.items())) | {"n": 1})
    with pytest.raises(FileError, match="has format 'kind', expected 'other'"):
        read_tensors(tmp_path / "0", "other")
    with pytest.raises(FileError, match="damaged or no safetensors file"):
        (tmp_path / "0").write_bytes(written[0][:-5])
        read_tensors(tmp_path / "0", "kind")


def test_a_table_of_other_settings_is_refused(tmp_path):
    path, table = tmp_path / "t.parquet", pd.DataFrame({"x": [1.5, None], "y": ["a", "b"]})
    assert read_table(path, {}) is None and read_table(None, {}) is None
    write_table(table, path, {"a": 1, "b": [2]})
    pd.testing.assert_frame_equal(read_table(path, {"a": 1, "b": [2]}), table)
    for other in ({"a": 2, "b": [2]}, {"a": 1}, {"a": 1, "b": [2], "c": None, "d": 0}):
        with pytest.raises(MismatchError, match="made with other settings"):
            read_table(path, other)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match="damaged"):
        read_table(path, {"a": 1, "b": [2]})


def test_a_result_is_kept_while_its_settings_hold(tmp_path):
    path, calls = tmp_path / "k.parquet", []

    def make():
        calls.append(1)
        return pd.DataFrame({"x": [0.1 + 0.2, float("nan")], "text": ["a", None]})

    first = kept(path, {"a": 1}, make)
    pd.testing.assert_frame_equal(kept(path, {"a": 1}, make), first, check_exact=True)
    before = path.read_bytes()
    assert len(calls) == 1 and first["x"][0] == 0.1 + 0.2
    kept(path, {"a": 2}, make)
    assert len(calls) == 2 and path.read_bytes() != before
    path.write_bytes(b"PAR1")
    kept(path, {"a": 2}, make)
    assert len(calls) == 3
    kept(path, {"a": 2}, make)
    assert len(calls) == 3


@dataclass
class Judge:
    words: object
    name: str = "lexicon"


def test_settings_are_told_apart_in_every_process():
    words = {"joy": {"happy", "glad"}, "fear": {"afraid"}}
    text = "[Judge{'words': {'joy': {'glad', 'happy'}, 'fear': {'afraid'}}, 'name': 'lexicon'}]"
    assert stable([Judge(words)]) == stable([Judge({k: set(sorted(v)) for k, v in words.items()})]) == text
    assert stable(Judge(1)) != stable(Judge(2))
    own = Judge(lambda texts: None)
    assert stable(own) != stable(own), "what a function does cannot be told from its address"


def test_versions_are_one_line_without_builds(monkeypatch):
    monkeypatch.setattr(storage.metadata, "version", {"torch": "2.13.0+cpu", "transformers": "5.23.0"}.__getitem__)
    assert storage.package_versions("torch") == {"emolab": emolab.__version__, "torch": "2.13.0"}
    monkeypatch.undo()
    assert emolab.versions().count("|") == 3 and "\n" not in emolab.versions()
    assert storage.package_versions("no-such-package")["no-such-package"] is None


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    with writing("~/run"):
        write_json("~/run/a.json", [1])
        write_table(pd.DataFrame({"x": [1]}), "~/run/t.parquet", {})
        write_tensors("~/run/v.safetensors", "kind", {"x": torch.ones(1)}, {})
    assert {path.name for path in (home / "run").iterdir()} >= {"a.json", "t.parquet", "v.safetensors"}
    assert storage.read_json("~/run/a.json", "") == [1] and read_table("~/run/t.parquet", {}) is not None
    assert read_tensors("~/run/v.safetensors", "kind")[0]["x"] == 1 and not list(here.iterdir())


@pytest.mark.parametrize("content", ["{", '{"a": 1, "a": 2}', "[" * 100_000], ids=["cut", "twice", "deep"])
def test_what_is_no_json_is_one_clear_error(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(FileError, match="a.json cannot be read as JSON .*; draw it again"):
        storage.read_json(tmp_path / "a.json", "draw it again")
    with pytest.raises(ValueError, match="NaN|nan"):
        write_json(tmp_path / "a.json", float("nan"))
    assert (tmp_path / "a.json").read_text() == content


LABELS = [
    "con", "nul.", "a/b", "a\\b", "..", "~", "-x", "a%b", "a b", "two\nlines", '<b>:*?"|', "_", "喜" * 100, "喜" * 101,
    "x" * 300, "x" * 301,
]  # fmt: skip


def test_a_file_of_any_label(tmp_path):
    """One file each, in that folder, under a name that every system takes."""
    for label in LABELS:
        write_json(tmp_path / f"lora_{storage.file_name(label)}.json", label)
    found = {storage.read_json(path, ""): path.name for path in tmp_path.iterdir()}
    assert {*found} == {*LABELS} and len({name.lower() for name in found.values()}) == len(LABELS)
    assert not [name for name in found.values() if set(name) & set('<>:"/\\|?*\n') or len(name.encode()) > 200]
