"""Files are whole or absent, the same bytes from the same content, and kept results are read only where they fit."""

from __future__ import annotations

import os
import random

import pandas as pd
import pytest
import torch

import emolab
from emolab.base import storage
from emolab.base.errors import FileError, MismatchError, ResourceError
from emolab.base.storage import atomic, kept, read_table, read_tensors, stable, write_json, write_table, write_tensors
from emolab.judges import judges, scoring
from emolab.judges.judges import EmbeddingJudge, FunctionJudge, LexiconJudge
from emolab.steering.gguf import from_gguf, to_gguf
from tests import oracle, tiny


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


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files are read from /proc")
def test_the_content_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    write_json(tmp_path / "a.json", 1)
    assert done == [str(tmp_path / f".a.json.{os.getpid()}.tmp"), "replace", str(tmp_path)]


def test_tensors_are_the_same_bytes_every_time(tmp_path):
    tensors = {name: torch.arange(6.0).reshape(2, 3) for name in "abc"}
    meta = {"größe": "ü\n\"'\\", **{f"key{i}": [i, {"x": "é"}] for i in range(20)}}
    found = []
    for i in range(6):  # safetensors alone would shuffle 22 keys
        write_tensors(tmp_path / f"{i}", "kind", tensors, meta)
        found.append((tmp_path / f"{i}").read_bytes())
    assert len(set(found)) == 1 and b"key19" in found[0]
    read, told = read_tensors(tmp_path / "0", "kind")
    assert told == meta and list(told) == sorted(meta) and all(torch.equal(read[k], tensors[k]) for k in tensors)
    write_tensors(tmp_path / "0", "kind", dict(reversed(tensors.items())), dict(reversed(meta.items())) | {"n": 1})
    with pytest.raises(FileError, match="has format 'kind', expected 'other'"):
        read_tensors(tmp_path / "0", "other")
    with pytest.raises(FileError, match="damaged or no safetensors file"):
        (tmp_path / "0").write_bytes(found[0][:-5])
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


def test_judges_are_told_apart_in_every_process():
    words = {"joy": {"happy", "glad", "merry"}, "fear": {"afraid"}}
    told = stable([LexiconJudge(words)])
    assert told == stable([LexiconJudge({k: set(sorted(v, reverse=True)) for k, v in words.items()})])
    assert told == "[LexiconJudge{'words': {'joy': {'glad', 'happy', 'merry'}, 'fear': {'afraid'}}, 'name': 'lexicon'}]"
    assert stable(EmbeddingJudge()) == stable(EmbeddingJudge()) != stable(EmbeddingJudge(temperature=0.1))
    own = FunctionJudge(lambda texts: None, ("joy",))
    assert stable(own) != stable(own), "what a function does cannot be told from its address"


def test_versions_is_one_line():
    assert storage.versions().count("|") == 3 and "\n" not in storage.versions()


def test_scores_are_kept_block_by_block(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "embed", oracle.embed)
    monkeypatch.setattr(scoring, "_BLOCK", 10)
    model, rng = tiny_llama, random.Random(0)
    asked = oracle.queries(0, 4)
    rows = [(e, alpha) for e in ("fear", "joy") for alpha in (0.0, 1.0, 2.0)]
    cells = [asked.assign(emotion=e, alpha=alpha, control="none") for e, alpha in rows]
    table = pd.concat(cells, ignore_index=True)
    table["text"] = [" ".join(rng.choices(oracle.PLAIN, k=6)) for _ in range(len(table))]
    table.attrs["emolab"] = {"max_new_tokens": 5, "fingerprint": model.fingerprint}
    expected, path = scoring.score(table, model=model), tmp_path / "scores.parquet"
    given, score, done = {"judges": None, "model": model, "client": None}, scoring.score, []

    def stopping(rows, **options):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(len(rows))
        return score(rows, **options)

    monkeypatch.setattr(scoring, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        scoring.kept_score(table, path, **given)
    assert done == [12] and not path.exists()
    done.append(0)
    found = scoring.kept_score(table, path, **given)
    assert done == [12, 0, 12] and os.listdir(tmp_path) == ["scores.parquet"], "two blocks of three turns"
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    assert found.attrs["judges"] == expected.attrs["judges"] and found.attrs["emolab"]["max_new_tokens"] == 5
    again = scoring.kept_score(table, path, **given)
    pd.testing.assert_frame_equal(again, found, check_exact=True)
    assert len(done) == 3 and found["adherence_shuffled"].notna().all()
    scoring.kept_score(table, path, **given | {"judges": EmbeddingJudge(temperature=0.1)})
    assert done[3:] == [12, 12], "another judge reads again"
    shuffled = table.sample(frac=1, random_state=0)
    assert [len(b) for b in scoring._blocks(shuffled)] == [24], "no turns: all at once"


def test_a_tilde_is_the_home_folder(tiny_llama, tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    vectors = tiny.random_vectors(tiny_llama)
    vectors.save("~/v.safetensors")
    assert emolab.EmotionVectors.load("~/v.safetensors").emotions == vectors.emotions
    to_gguf(vectors, "~/joy.gguf", {"joy": 1.0})
    assert from_gguf("~/joy.gguf").emotions == ("joy",)
    (home / "q.json").write_text('["tell me about the park .", "a cat in the rain ."]')
    queries = emolab.load_queries("~/q.json")
    options = {"emotions": ("joy",), "max_new_tokens": 8, "out": "~/runs/x"}
    responses = emolab.collect_responses(tiny_llama, queries, **options)
    emolab.extract_vectors(tiny_llama, responses, sites=("resid",), out="~/runs/x")
    emolab.sweep(
        tiny_llama, vectors, queries, alphas=(0, 1), controls=(), grid={"site": ["attn"]}, max_new_tokens=2,
        out="~/runs/x",
    )  # fmt: skip
    found = {path.name for path in (home / "runs/x").iterdir()}
    assert {"responses.parquet", "vectors.safetensors", "sweep.parquet"} <= found and not list(here.iterdir())
    from emolab.studies.cli import _parser

    parsed = _parser().parse_args(["steer", "--vectors=~/v.safetensors", "--set=joy=1", "--out=~/runs", "hi"])
    assert (emolab.load_vectors(parsed.vectors).emotions, parsed.out) == (vectors.emotions, home / "runs")
