"""Every reader of tensors and vectors against files that are cut, flipped, forged or bombs."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from emolab import EmotionVectors, ResponseMeans
from emolab.steering.gguf import from_gguf, to_gguf
from emolab.vectors.exchange import from_published, from_tensors
from tests.damaging import damaged, few, json_values, outcome
from tests.made_means import make_means, orthogonal

EMOTIONS = ("joy", "sadness")


def made_vectors():
    data = torch.arange(2 * 3 * 4).reshape(2, 3, 4) / 7
    meta = {"model": "m", "fingerprint": "f" * 16, "part": "whole", "steps": ["specific"]}
    return EmotionVectors({"resid": data, "attn": data * 2}, EMOTIONS, torch.ones(3), meta)


def saved(folder: Path) -> dict[str, bytes]:
    """The bytes of one sound file of every kind."""
    made_vectors().save(folder / "ev")
    make_means(orthogonal(5, 2, 8), n_queries=3).save(folder / "means")
    save_file({"joy": torch.ones(3, 4), "sadness.0": torch.ones(4)}, folder / "tensors")
    to_gguf(made_vectors(), folder / "gguf", {"joy": 1.0})
    (folder / "json").write_text(json.dumps({str(i): [[0.5, -1.0, 2.0]] for i in range(3)}))
    return {name: (folder / name).read_bytes() for name in ("ev", "means", "tensors", "gguf", "json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole"))


def of_folder(path: Path):
    return from_published(path.parent)


READERS = {
    "ev": (EmotionVectors.load, "ev.safetensors"),
    "means": (ResponseMeans.load, "means.safetensors"),
    "tensors": (lambda path: from_tensors(path, site="resid"), "t.safetensors"),
    "gguf": (from_gguf, "joy.gguf"),
    "json": (of_folder, "m_joy.json"),
}


def sound(found) -> None:
    """An object that can be used, or a message."""
    if isinstance(found, EmotionVectors):
        assert all(x.isfinite().all() and x.shape[:2] == (len(found.emotions), found.n_layers)
            for x in found.data.values())
        assert found.part("shared").emotions == ("shared",) and repr(found)
        assert len(set(found.emotions)) == len(found.emotions)
    elif isinstance(found, ResponseMeans):
        assert all(np.isfinite(x).all() and len(x) == len(found) for x in found.means.values())
        assert found.index["condition"].map(type).eq(str).all() and len(found.select([])) == 0
    else:
        assert isinstance(found, str)


@pytest.mark.parametrize("kind", READERS)
def test_a_sound_file_is_read(whole, tmp_path, kind):
    read, name = READERS[kind]
    found = outcome(read, tmp_path / name, whole[kind])
    assert isinstance(found, str) == (kind == "tensors")  # that one lacks layers of sadness
    sound(found)


@pytest.mark.parametrize("kind", READERS)
@few
@given(data=st.data())
def test_damaged_files_are_read_or_refused(whole, tmp_path, kind, data):
    read, name = READERS[kind]
    sound(outcome(read, tmp_path / name, data.draw(damaged(whole[kind]))))


@pytest.mark.parametrize("kind", READERS)
def test_files_cut_at_every_kind_of_place_are_refused(whole, tmp_path, kind):
    read, name = READERS[kind]
    size = len(whole[kind])
    for at in {0, 1, 7, 8, 9, 16, 24, 32, size // 3, size // 2, size - 20, size - 17}:  # GGUF ends in padding
        assert isinstance(outcome(read, tmp_path / name, whole[kind][:at]), str), at


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
    "overlapping tensors": forged({"__metadata__": META, "resid": RESID, "resid_norm": NORM | {"data_offsets": [4, 8]}},
        PAYLOAD),
    "nested too deep": forged(b'{"a":' * 50_000),
    "no JSON": forged(b"\xff\xfe{}"),
    "a number for a header": forged(b"3"),
    "metadata of numbers": forged({"__metadata__": {"format": 3}}),
    "no tensor": forged({"__metadata__": META}),
    "no norm": forged({"__metadata__": META, "resid": RESID | {"data_offsets": [0, 8]}}, PAYLOAD[:8]),
    "NaN inside": forged({"__metadata__": META, "resid": RESID, "resid_norm": NORM}, np.full(3, np.nan,
        np.float32).tobytes()),
    "a pickle": pickle.dumps({"joy": [1.0]}),
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED.keys())
@pytest.mark.parametrize("kind", ["ev", "means", "tensors"])
def test_forged_headers_are_refused(tmp_path, content, kind):
    read, name = READERS[kind]
    assert isinstance(outcome(read, tmp_path / name, content), str)


@few
@given(meta=st.dictionaries(st.sampled_from(("sites", "emotions", "steps", "part", "model", "means")), json_values),
    coded=st.text(max_size=12))
def test_a_header_of_any_types_is_read_or_refused(tmp_path, meta, coded):
    header = META | {key: json.dumps(value) for key, value in meta.items()} | {"json": ",".join([*meta, coded])}
    content = forged({"__metadata__": header, "resid": RESID, "resid_norm": NORM}, PAYLOAD)
    sound(outcome(EmotionVectors.load, tmp_path / "ev.safetensors", content))


@few
@given(index=json_values | st.fixed_dictionaries({"columns": json_values, "data": json_values}))
def test_an_index_of_any_type_is_read_or_refused(tmp_path, index):
    means = {"resid_norm": torch.ones(1, 1), "resid": torch.ones(1, 1, 2)}
    meta = {"format": "emolab-response-means-1", "json": "", "index": json.dumps(index)}
    save_file(means, tmp_path / "means.safetensors", metadata=meta)
    sound(outcome(ResponseMeans.load, tmp_path / "means.safetensors"))


@pytest.mark.parametrize("site", ["resid", "attn", "head", "resid_norm"])
@pytest.mark.parametrize("value", [torch.full((6, 2, 8), torch.nan), torch.ones(6, 3, 8), torch.ones(5, 2, 8),
    torch.ones(6)])
def test_means_of_odd_shapes_and_values_are_refused(tmp_path, site, value):
    index = pd.DataFrame({"query_id": [*"aabbcc"], "emotion": "neutral", "condition": ["neutral", "joy"] * 3,
        "n_tokens": 3})
    tensors = {"resid": torch.ones(6, 2, 8), "resid_norm": torch.ones(6, 2), site: value}
    meta = {"format": "emolab-response-means-1", "json": "", "index": index.to_json(orient="split", index=False)}
    save_file(tensors, tmp_path / "means.safetensors", metadata=meta)
    assert "without a fitting index" in outcome(ResponseMeans.load, tmp_path / "means.safetensors")


@few
@given(content=json_values | st.dictionaries(st.sampled_from("012"), json_values | st.lists(st.lists(st.floats(),
    max_size=3), max_size=2)))
def test_published_json_of_any_types_is_read_or_refused(tmp_path, content):
    sound(outcome(of_folder, tmp_path / "m_joy.json", json.dumps(content).encode()))


def test_a_layer_that_stands_twice_is_refused(tmp_path):
    told = outcome(of_folder, tmp_path / "m_joy.json", b'{"0": [[1.0]], "0": [[2.0]]}')
    assert "occurs twice" in told


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a/b", "\\\\host\\x", "joy\n", "<script>", " "])
def test_names_in_files_are_labels_and_no_paths(tmp_path, name):
    save_file({name: torch.ones(3, 4)}, tmp_path / "t.safetensors")
    found = outcome(lambda path: from_tensors(path, site="resid"), tmp_path / "t.safetensors")
    assert found.emotions == (name,) if name.strip() else "label" in found


# GGUF: header, key-values, tensor infos


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


def test_folders_links_and_devices_are_no_files(whole, tmp_path):
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("loop.safetensors", "folder.safetensors", "absent.safetensors"):
        for kind in ("ev", "means", "tensors", "gguf"):
            assert isinstance(outcome(READERS[kind][0], tmp_path / name), str)
    if os.path.exists("/dev/full"):
        with pytest.raises(ValueError, match="/dev/full"):
            EmotionVectors.load("/dev/full")
