"""Control vectors of llama.cpp and repeng, in and out; damaged files: tests/test_fuzz.py."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from emolab.base.errors import EmolabError
from emolab.models.prompts import encode
from emolab.steering.gguf import from_gguf, to_gguf
from emolab.steering.steering import Steering, steered
from emolab.vectors.vectors import EmotionVectors
from tests import tiny


def layers(n=3, d=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def write_gguf(path, tensors, *, arch="controlvector", hint="mistral"):
    """As repeng's export_gguf and llama.cpp's cvector-generator do."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_direction_i_is_what_is_added_after_block_i_and_block_0_has_none(tiny_llama, tmp_path):
    path = tmp_path / "joy.gguf"
    vectors = tiny.random_vectors(tiny_llama)
    to_gguf(vectors, path, {"joy": 1.5, "anger": -0.5})
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == tiny_llama.name
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert reader.get_field("general.name").contents() == "1.5 joy + -0.5 anger"
    found = {x.name: x for x in reader.tensors}
    assert list(found) == ["direction.1", "direction.2"]  # llama.cpp refuses direction.0, other types and other shapes
    for i in (1, 2):
        wanted = 1.5 * vectors.get(emotion="joy", layer=i) - 0.5 * vectors.get(emotion="anger", layer=i)
        assert found[f"direction.{i}"].tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(found[f"direction.{i}"].data, wanted.numpy())  # the numbers are sums of 64ths: exact


def test_there_and_back_is_exact_but_for_the_first_block(tiny_llama, tmp_path):
    path, vectors = tmp_path / "joy.gguf", tiny.random_vectors(tiny_llama)
    vectors = EmotionVectors(
        {"resid": torch.randn(3, 3, 32, generator=torch.Generator().manual_seed(0))},
        vectors.emotions, vectors.resid_norm, vectors.meta,
    )  # fmt: skip
    to_gguf(vectors, path, {"joy": 1.0})
    back = from_gguf(path)
    assert back.emotions == ("joy",) and back.sites == ("resid",) and back.meta["source"] == "gguf"
    assert torch.equal(back.get(emotion="joy")[1:], vectors.get(emotion="joy")[1:])
    assert not back.get(layer=0).any() and back.n_layers == 3
    assert back.meta["fingerprint"] == tiny_llama.fingerprint  # a model that it was not made on goes on refusing it
    again = tmp_path / "again.gguf"
    to_gguf(back, again, {"joy": 1.0})
    assert torch.equal(from_gguf(again, emotion="joy").get(), back.get())


def test_what_comes_back_steers_as_what_went_where_nothing_is_lost(tiny_llama, tmp_path):
    vectors, path = tiny.random_vectors(tiny_llama), tmp_path / "x.gguf"
    to_gguf(vectors, path, {"joy": 0.2}, layers=[2], part="specific", unit="residual")
    back = from_gguf(path, model=tiny_llama)
    batch = encode(tiny_llama, ["<bos>tell me about the park"])
    own = Steering(vectors, {"joy": 0.2}, layers=[2], part="specific", unit="residual", positions="all")
    logits = []
    for steering in (None, own, Steering(back, {"x": 1.0}, positions="all")):
        with steered(tiny_llama, steering):
            logits.append(tiny_llama(batch.input_ids, attention_mask=batch.attention_mask))
    torch.testing.assert_close(logits[1], logits[2])
    assert (logits[0] - logits[1]).abs().max() > 0.1


def test_files_of_repeng_and_llama_cpp_come_in(tiny_llama, tmp_path):
    x = layers(3, 32)
    happy = write_gguf(tmp_path / "happy.gguf", {"direction.2": x[2], "direction.1": x[1]})  # repeng counts downwards
    sad = write_gguf(tmp_path / "sad.gguf", {"direction.1": x[0].astype(np.float16)})
    vectors = from_gguf({"sadness": sad, "joy": happy}, model=tiny_llama)
    assert vectors.emotions == ("joy", "sadness") and vectors.n_layers == 3
    assert np.array_equal(vectors.get(emotion="joy").numpy(), np.stack([np.zeros(32), x[1], x[2]]))
    assert np.array_equal(vectors.get(emotion="sadness", layer=1).numpy(), x[0].astype(np.float16))
    assert not vectors.get(emotion="sadness")[[0, 2]].any()  # missing directions are zero
    free = from_gguf(sad, emotion="sadness")
    assert (free.n_layers, free.meta["model"], free.meta["fingerprint"]) == (2, "mistral", None)


def test_what_a_control_vector_cannot_hold_is_refused(tiny_llama, tmp_path):
    path, vectors = tmp_path / "x.gguf", tiny.random_vectors(tiny_llama)
    attn = EmotionVectors({"attn": vectors.get("attn")}, vectors.emotions, vectors.resid_norm, vectors.meta)
    with pytest.raises(EmolabError, match="adds to the residual stream, and these vectors are of attn"):
        to_gguf(attn, path, {"joy": 1.0})
    with pytest.raises(EmolabError, match="no direction for layer 0"):
        to_gguf(vectors, path, {"joy": 1.0}, layers=[0, 1])
    one = EmotionVectors({"resid": vectors.get()[:, :1]}, vectors.emotions, vectors.resid_norm[:1], {})
    with pytest.raises(EmolabError, match="the only layer"):
        to_gguf(one, path, {"joy": 1.0})
    assert not list(tmp_path.iterdir())  # neither a file nor half of one


def test_files_that_are_no_control_vectors_are_refused(tiny_llama, tmp_path):
    path, x = tmp_path / "x.gguf", layers(2, 8)
    cases = {
        "architecture 'llama', expected 'controlvector'": ({"direction.1": x[0]}, {"arch": "llama"}),
        r"holds 'direction.0', float32 \[8\]": ({"direction.0": x[0]}, {}),
        "holds 'direction.x'": ({"direction.x": x[0]}, {}),
        "holds 'direction.01'": ({"direction.01": x[0]}, {}),
        "holds 'direction.1000'": ({"direction.1000": x[0]}, {}),
        "holds 'token_embd.weight'": ({"direction.1": x[0], "token_embd.weight": x[0]}, {}),
        r"holds 'direction.1', float32 \[2, 8\]": ({"direction.1": x}, {}),
        r"holds 'direction.1', int32 \[8\]": ({"direction.1": x[0].astype(np.int32)}, {}),
        r"lengths \[7, 8\]": ({"direction.1": x[0], "direction.2": x[1, :7].copy()}, {}),
        r"lengths \[\]": ({}, {}),
        "hold NaN or infinity": ({"direction.1": x[0] * np.float32("nan")}, {}),
    }
    for message, (tensors, how) in cases.items():
        write_gguf(path, tensors, **how)
        with pytest.raises(EmolabError, match=message):
            from_gguf(path)
    write_gguf(path, {"direction.1": x[0]})
    with pytest.raises(EmolabError, match=r"3 layers, d_model 8, .* \(3 layers, d_model 32"):
        from_gguf(path, model=tiny_llama)
    with pytest.raises(EmolabError, match="give either emotion= with one path"):
        from_gguf({"joy": path}, emotion="joy")
    with pytest.raises(EmolabError, match="there is no path"):
        from_gguf({})
    with pytest.raises(EmolabError, match="missing, damaged or no GGUF file"):
        from_gguf(tmp_path / "absent.gguf")


def test_a_control_vector_is_not_bound_to_a_model_that_it_was_not_made_on(tiny_llama, tmp_path):
    vectors, paths = tiny.random_vectors(tiny_llama), [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for path, mark in zip(paths, ("a" * 16, "b" * 16), strict=True):
        vectors.meta = {"model": path.stem, "fingerprint": mark}
        to_gguf(vectors, path, {"joy": 1.0})
    with pytest.raises(EmolabError, match=r"of another model: 'a' .*fingerprint a{16}\), and this is"):
        from_gguf(paths[0], model=tiny_llama)
    with pytest.raises(EmolabError, match=r"of different models \(a, b\)"):
        from_gguf({"joy": paths[0], "fear": paths[1]})
