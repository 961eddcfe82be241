"""Vectors from elsewhere, in and out: the paper's files, plain tensors, control vectors of llama.cpp and repeng."""

from __future__ import annotations

import json
import pickle
import warnings

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from emolab import plot
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from emolab.geometry import similarity
from emolab.models.prompts import encode
from emolab.steering.gguf import from_gguf, to_gguf
from emolab.steering.steering import Steering, steered
from emolab.vectors.exchange import from_published, from_tensors
from emolab.vectors.vectors import EmotionVectors
from tests import tiny

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def layers(n=3, d=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def publish(folder, data, name="qwen2_5_7b"):
    """A folder in the paper's format: {layer: [[floats]]}, the layers not in order of number."""
    folder.mkdir(exist_ok=True)
    for emotion, x in data.items():
        content = {str(i): [x[i].tolist()] for i in sorted(range(len(x)), key=str)}
        (folder / f"{name}_{emotion}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def published(tmp_path):
    return publish(tmp_path / "EV", {e: layers(12, 8, i) for i, e in enumerate(reversed(EMOTIONS))})


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


# The paper's files


def test_published_files_come_in_exactly_with_layers_in_the_order_of_their_numbers(published):
    (published / "README.md").write_text("five emotions")
    (published / "._qwen_joy.json").write_bytes(b"\0")  # what some systems leave beside copied files
    vectors = from_published(published)
    assert vectors.emotions == EMOTIONS and vectors.sites == ("attn",)
    assert (vectors.n_layers, vectors.d_model) == (12, 8)
    for i, emotion in enumerate(reversed(EMOTIONS)):
        assert np.array_equal(vectors.get("attn", emotion=emotion).numpy(), layers(12, 8, i))
    about = ("model", "source", "fingerprint", "n_layers", "d_model", "part")
    assert [vectors.meta[key] for key in about] == ["qwen2_5_7b", "published", None, 12, 8, "whole"]


def test_published_vectors_go_through_everything_that_needs_no_provenance(published, tmp_path):
    vectors = from_published(published)
    vectors.save(tmp_path / "ev.safetensors")
    loaded = EmotionVectors.load(tmp_path / "ev.safetensors")
    assert torch.equal(loaded.get("attn"), vectors.get("attn")) and loaded.meta == vectors.meta
    assert torch.equal(loaded.resid_norm, torch.zeros(12))
    whole = vectors.part("shared") + vectors.part("specific")
    torch.testing.assert_close(whole.get("attn"), vectors.get("attn"), rtol=1e-5, atol=1e-6)
    assert similarity.cosine_matrix(vectors, site="attn", layer=10).shape == (5, 5)
    with pytest.raises(EmolabError, match='lack the norm of the residual stream; use unit="vector"'):
        Steering(vectors, {"joy": 1.0}, site="attn", unit="residual")
    with pytest.raises(EmolabError, match="no site 'resid', only attn"):
        Steering(vectors, {"joy": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot.cosine_by_layer(vectors, site="attn")
        plot.cosine_grid(vectors, site="attn", part="specific")
        plot.layer_map(vectors, site="attn")
        assert plot.cosine_map(vectors, 3, site="attn").emolab_info["model"]["name"] == "qwen2_5_7b"


def test_published_vectors_steer_a_model_of_their_shape_and_are_bound_to_it_on_request(tiny_llama, tiny_gpt2, tmp_path):
    x = layers(3, 32)
    folder = publish(tmp_path / "EV", {"joy": x, "anger": -x})
    free, bound = (from_published(folder, model=m) for m in (None, tiny_llama))
    assert bound.meta["fingerprint"] == tiny_llama.fingerprint and bound.meta["source"] == "published"
    batch = encode(tiny_llama, ["<bos>tell me about the park"])
    caches = []
    for vectors in (None, free, bound):
        steering = vectors and Steering(vectors, {"joy": 2.0}, site="attn", layers=[1])
        with steered(tiny_llama, steering):
            caches.append(tiny_llama.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)[1])
    moved = [cache["blocks.1.hook_attn_out"] - caches[0]["blocks.1.hook_attn_out"] for cache in caches[1:]]
    for change in moved:
        torch.testing.assert_close(change[0, -1], torch.from_numpy(2 * x[1]), rtol=1e-4, atol=1e-4)
        assert not change[0, :-1].any()
    with pytest.raises(EmolabError, match="have 3 layers and d_model 32, .* has 2 and 32"):
        from_published(folder, model=tiny_gpt2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": [[1, 2]], "2": [[1, 2]]}', "has a layer '2' and no layer '1'"),
        ('{"1": [[1, 2]], "2": [[1, 2]]}', "has a layer '2' and no layer '0'"),
        ('{"0": [[1, 2]], "one": [[1, 2]]}', "has a layer 'one' and no layer '1'"),
        ('{"0": [[1, 2]], "1": [[1, 2, 3]]}', "layer 1: 3 numbers, where layer 0 has 2"),
        ('{"0": [[1, NaN]]}', "layer 0: NaN, infinity or a number beyond float32"),
        ('{"0": [[1, 1e39]]}', "layer 0: NaN, infinity or a number beyond float32"),
        ('{"0": [[1, 2], [3, 4]]}', r"layer 0: shape \[2, 2\]; expected \[\[d_model numbers\]\]"),
        ('{"0": [[[1, 2]]]}', r"layer 0: shape \[1, 1, 2\]"),
        ('{"0": [[1, 2], [3]]}', "layer 0: something else than numbers"),
        ('{"0": [[1, "2"]]}', "layer 0: something else than numbers"),
        ('{"0": [[1, null]]}', "layer 0: something else than numbers"),
        ('{"0": [[true, false]]}', "layer 0: something else than numbers"),
        ('{"0": [[]]}', r"layer 0: shape \[1, 0\]"),
        ('{"0": 3}', r"layer 0: shape \[\]"),
        ("{}", "holds no layers"),
        ("[[1, 2]]", "holds no layers"),
        ('{"0": [[1, 2', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\xff\xfe\x00", "cannot be read as JSON"),
    ],
)
def test_what_is_wrong_with_a_published_file_is_said_of_that_file(tmp_path, content, message):
    folder = publish(tmp_path / "EV", {"joy": layers(2, 2)})
    (folder / "qwen_anger.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(EmolabError, match=rf"qwen_anger\.json.*{message}"):
        from_published(folder)


def test_what_is_wrong_with_a_published_folder_is_said(tmp_path, published):
    with pytest.raises(EmolabError, match="no .json file in .*absent'; expected a folder with one file an emotion"):
        from_published(tmp_path / "absent")
    with pytest.raises(EmolabError, match="it holds the folders EV: name one of them"):
        from_published(tmp_path)
    with pytest.raises(EmolabError, match="no .json file"):
        from_published(published / "qwen2_5_7b_joy.json")
    (published / "config.json").write_text("{}")
    with pytest.raises(EmolabError, match="config.json is no <name>_<emotion>.json"):
        from_published(published)
    (published / "config.json").rename(published / "llama_joy.json")
    with pytest.raises(EmolabError, match="qwen2_5_7b_joy.json is a second file of that emotion"):
        from_published(published)
    (published / "llama_joy.json").unlink()
    publish(published, {"calm": layers(11, 8)})
    with pytest.raises(EmolabError, match=r"differ in shape \(anger \[12, 8\], .*calm \[11, 8\]\)"):
        from_published(published)


# Plain tensors


def test_tensors_come_in_by_emotion_or_by_emotion_and_layer(tmp_path):
    x, many = torch.from_numpy(layers(12)), torch.from_numpy(layers(12, seed=1))
    by_layer = {f"high valence.{i}": many[i].half() for i in range(12)}
    save_file({"joy": x, **by_layer}, tmp_path / "mine.safetensors")
    vectors = from_tensors(tmp_path / "mine.safetensors", site="mlp")
    assert vectors.emotions == ("joy", "high valence") and vectors.sites == ("mlp",)
    assert torch.equal(vectors.get("mlp", emotion="joy"), x)
    assert torch.equal(vectors.get("mlp", emotion="high valence"), many.half().float())
    assert (vectors.meta["source"], vectors.meta["model"]) == ("tensors", "mine")
    save_file({"joy": torch.ones(2, 4, 8), "v1.5": torch.ones(2, 4, 8)}, tmp_path / "heads.safetensors")
    assert from_tensors(tmp_path / "heads.safetensors", site="head").emotions == ("joy", "v1.5")


def test_tensors_of_another_kind_are_refused(tmp_path, tiny_llama):
    path, x = tmp_path / "x.safetensors", torch.ones(3, 8)
    cases = {
        r"holds 'joy', torch.float32 \[8\]; expected": {"joy": x[0]},
        r"holds 'joy', torch.int64 \[3, 8\]": {"joy": x.long()},
        r"holds 'joy', torch.float32 \[1, 3, 8\]": {"joy": x[None]},
        r"'joy' has layers \[0, 2\]": {"joy.0": x[0], "joy.2": x[0].clone()},
        r"'joy' has layers \[0, 1\], shapes \[\(7,\), \(8,\)\]": {"joy.0": x[0], "joy.1": x[0, :7].clone()},
        r"'joy' has layers \[0\]": {"joy": x, "joy.0": x[0].clone()},
        "differ in shape": {"joy": x, "fear": x[:2].clone()},
        "hold NaN": {"joy": x * float("nan")},
        "holds no vector": {},
    }
    for message, tensors in cases.items():
        save_file(tensors, path)
        with pytest.raises(EmolabError, match=message):
            from_tensors(path, site="resid")
    tiny.random_vectors(tiny_llama).save(path)
    with pytest.raises(EmolabError, match="was written by emolab; use EmotionVectors.load"):
        from_tensors(path, site="resid")
    with pytest.raises(EmolabError, match="unknown site 'residual'"):
        from_tensors(path, site="residual")
    with pytest.raises(EmolabError, match="no whole safetensors file"):
        from_tensors(tmp_path / "absent.safetensors", site="resid")


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'gone off')!r}, 'w')",))

    for name, content in (("x.pt", pickle.dumps(Bomb())), ("x.safetensors", pickle.dumps({"joy": Bomb()}))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EmolabError, match="no whole safetensors file .*pickles are never read"):
            from_tensors(tmp_path / name, site="resid")
        with pytest.raises(EmolabError, match="no GGUF file"):
            from_gguf(tmp_path / name)
    assert not (tmp_path / "gone off").exists()


# Control vectors


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
    assert similarity.cosines(vectors).shape == (3, 2, 2) and vectors.part("specific").emotions == ("joy", "sadness")


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
    with pytest.raises(EmolabError, match="unknown emotion 'jo'"):
        to_gguf(vectors, path, {"jo": 1.0})
    with pytest.raises(EmolabError, match="finite number"):
        to_gguf(vectors, path, {"joy": float("inf")})
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
    with pytest.raises(EmolabError, match="have 3 layers and d_model 8, .* has 3 and 32"):
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
    with pytest.raises(EmolabError, match=r"were made on 'a' \(a{16}\), not on"):
        from_gguf(paths[0], model=tiny_llama)
    with pytest.raises(EmolabError, match=r"of different models \(a, b\)"):
        from_gguf({"joy": paths[0], "fear": paths[1]})


# Damaged files: an error of ours or a sound result, never another error, and never for long


@pytest.fixture(scope="module")
def sound(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("sound")
    to_gguf(tiny.random_vectors(tiny_llama), folder / "x.gguf", {"joy": 1.0})
    save_file({"joy": torch.ones(3, 8), "fear": torch.ones(3, 8)}, folder / "x.safetensors")
    publish(folder, {"joy": layers(2, 3)}, name="x")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


damage = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)


@quick
@given(damage=damage, cut=st.floats(0, 1), kind=st.sampled_from([".gguf", ".safetensors", ".json"]))
def test_damaged_files_end_in_one_clear_error(sound, tmp_path, damage, cut, kind):
    content = bytearray(sound[kind])
    for place, value in damage:
        content[int(place * len(content))] = value
    read = {
        ".gguf": lambda p: from_gguf(p),
        ".safetensors": lambda p: from_tensors(p, site="resid"),
        ".json": lambda p: from_published(p.parent),
    }[kind]
    path = tmp_path / f"{kind[1:]}/x_joy{kind}"
    path.parent.mkdir(exist_ok=True)
    for whole in (bytes(content), sound[kind][: int(cut * len(sound[kind]))]):
        path.write_bytes(whole)
        with warnings.catch_warnings(action="ignore"):
            try:
                assert read(path).get(read(path).sites[0]).isfinite().all()
            except EmolabError as error:
                assert "x_joy" in str(error) or "json" in str(error)


def test_a_length_that_a_damaged_file_invents_does_not_hang_the_reader(tmp_path):
    header = b"GGUF" + np.array([3], "<u4").tobytes() + np.array([0, 1], "<u8").tobytes()
    key = np.array([1], "<u8").tobytes() + b"k" + np.array([9, 0], "<u4").tobytes()  # an array of bytes
    (tmp_path / "x.gguf").write_bytes(header + key + np.array([2**60], "<u8").tobytes())
    with pytest.raises(EmolabError, match="it ends early"):
        from_gguf(tmp_path / "x.gguf")


# Agreement with one's own


def made(x, emotions=("anger", "joy"), site="attn"):
    return EmotionVectors({site: torch.as_tensor(x)}, emotions, torch.zeros(x.shape[1]), {"model": "m"})


def test_agreement_is_the_cosine_of_like_with_like_beside_unlike():
    e = np.eye(4)
    ours = made(np.stack([[e[0], e[0]], [e[1], e[1]]]))
    theirs = made(np.stack([[3 * e[1], e[2]], [2 * e[0], e[0]], [e[3], e[0] + e[1]]]), ("joy", "anger", "calm"))
    table = similarity.vector_agreement(ours, theirs, site="attn").set_index(["emotion", "layer"])
    assert table["cosine"].to_dict() == {("anger", 0): 1, ("anger", 1): 1, ("joy", 0): 1, ("joy", 1): 0}
    assert table["mismatched"].to_dict() == {("anger", 0): 0, ("anger", 1): 0, ("joy", 0): 0, ("joy", 1): 0}
    assert (table["random"] == 0.98).all()
    specific = similarity.vector_agreement(ours, theirs, site="attn", part="specific").set_index(["emotion", "layer"])
    np.testing.assert_allclose(specific.loc["anger", "mismatched"].loc[0], -5 / 26**0.5)
    lone = similarity.vector_agreement(ours, made(theirs.get("attn")[:1], ("joy",)), site="attn")
    assert list(lone["emotion"].unique()) == ["joy"] and lone["mismatched"].isna().all()
    shifted = made(ours.get("attn") + 5 * torch.tensor(e[3]))
    assert similarity.vector_agreement(ours, shifted, site="attn")["cosine"].max() < 0.2
    agreement = similarity.vector_agreement(ours, shifted, site="attn", part="specific")
    np.testing.assert_allclose(agreement["cosine"], 1, atol=1e-6)


def test_agreement_needs_something_in_common():
    ours = made(np.ones((2, 3, 4)))
    for other in (made(np.ones((2, 3, 4)), ("calm", "hope")), made(np.ones((2, 2, 4))), made(np.ones((2, 3, 5)))):
        with pytest.raises(EmolabError, match="cannot compare"):
            similarity.vector_agreement(ours, other, site="attn")
    with pytest.raises(EmolabError, match="no site 'resid'"):
        similarity.vector_agreement(ours, ours)
    with pytest.raises(EmolabError, match='part must be "whole" or "specific"'):
        similarity.vector_agreement(ours, ours, site="attn", part="shared")
