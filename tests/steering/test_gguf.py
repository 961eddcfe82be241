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


def write_gguf(path, tensors, *, arch="controlvector", hint="mistral", count=None, says=(), kind=None, **options):
    """As repeng's export_gguf and llama.cpp's cvector-generator do; says: more keys; kind: a type of numbers."""
    writer = gguf.GGUFWriter(path, arch, **options)
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(tensors) if count is None else count)
    for key, value in dict(says).items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_int32, float: writer.add_float32}
        add[type(value)](key, value)
    for name, x in tensors.items():
        if kind is None:
            writer.add_tensor(name, x)
        else:
            writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
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


def test_direction_0_is_layer_0_and_a_file_says_how_it_was_made(tiny_llama, tmp_path):
    x = layers(3, 32)
    says = {"controlvector.method": "diffmean", "controlvector.normalize": True, "controlvector.token_pos": -1}
    path = write_gguf(tmp_path / "happy.gguf", {f"direction.{i}": x[i] for i in range(3)}, hint="qwen2.5", says=says)
    vectors = from_gguf(path, emotion="joy", model=tiny_llama)
    assert np.array_equal(vectors.get(emotion="joy").numpy(), x) and vectors.sites == ("resid",)
    assert [from_gguf(path).meta[key] for key in ("model", "n_layers", "method", "normalize", "token_pos")] == [
        "qwen2.5", 3, "diffmean", True, -1,
    ]  # fmt: skip
    vectors.save(tmp_path / "ev.safetensors")
    kept = EmotionVectors.load(tmp_path / "ev.safetensors").meta
    assert (kept["method"], kept["normalize"], kept["token_pos"]) == ("diffmean", True, -1)


@pytest.mark.parametrize(
    "how, error",
    [
        *(({"kind": getattr(gguf.GGMLQuantizationType, name)}, error) for name, error in
          (("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 0.02), ("F32", 0))),
        ({"endianess": gguf.GGUFEndian.BIG}, 0),
    ],
)  # fmt: skip
def test_numbers_of_every_precision_are_read(how, error, tmp_path):
    x = layers(2, 64)
    found = from_gguf(write_gguf(tmp_path / "x.gguf", {"direction.1": x[0], "direction.2": x[1]}, **how)).get(
        emotion="x"
    )
    assert found.dtype == torch.float32 and not found[0].any()
    np.testing.assert_allclose(found[1:].numpy(), x, rtol=error, atol=error)


def test_a_file_counts_layers_or_directions(tiny_llama, tmp_path):
    x = layers(3, 32)
    some = write_gguf(tmp_path / "some.gguf", {"direction.1": x[1]}, count=3)  # of a model of three layers
    assert from_gguf(some).n_layers == 3 and not from_gguf(some).get()[0, [0, 2]].any()
    many = write_gguf(tmp_path / "many.gguf", {"direction.1": x[1]}, count=40)
    assert from_gguf(many).n_layers == 40 and from_gguf(many, model=tiny_llama).n_layers == 3
    for count in (1, 1000):
        path = write_gguf(tmp_path / "x.gguf", {"direction.1": x[1], "direction.2": x[2]}, count=count)
        with pytest.raises(EmolabError, match=f"says that it has {count} layers, and holds 2"):
            from_gguf(path)


@pytest.mark.parametrize(
    "key, value",
    [
        ("dspark.mode", "project"),  # GLP, https://github.com/msuiche/weightless
        ("glp.mode", "project"),
        ("glp.mode", "clamp"),
        ("dspark.hook_point", "ffn_out_pre_residual"),
        ("easysteer.component", "attention_heads"),
        ("controlvector.method", "projective"),
        ("controlvector.method", "mean_ablation"),
        ("controlvector.type", "ablation"),
        ("controlvector.projected", True),
    ],
)
def test_what_is_not_to_be_added_is_refused(key, value, tmp_path):
    tensors = {"direction.1": layers(1, 32)[0]}
    with pytest.raises(EmolabError, match=f"says {key} = {value!r}: it is not to be added") as caught:
        from_gguf(write_gguf(tmp_path / "x.gguf", tensors, says={key: value}))
    assert "\n" not in str(caught.value)
    added = {
        "dspark.mode": "add",
        "dspark.hook_point": "residual_stream_post_layer",
        "easysteer.component": "hidden_states",
    }
    added |= {"controlvector.method": "pca_center", "controlvector.projected": False, "general.type": "adapter"}
    assert from_gguf(write_gguf(tmp_path / "x.gguf", tensors, says=added)).meta["method"] == "pca_center"


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
        r"holds 'direction.-1', float32 \[8\]": ({"direction.-1": x[0]}, {}),
        r"holds 'direction.1.2', float32 \[8\]": ({"direction.1.2": x[0]}, {}),
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
