"""Vectors from elsewhere: the paper's files and plain tensors. Control vectors: tests/steering/test_gguf.py."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from emolab import plot
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from emolab.geometry import similarity
from emolab.models.prompts import encode
from emolab.steering.steering import Steering, steered
from emolab.vectors.exchange import from_published, from_tensors
from emolab.vectors.vectors import EmotionVectors
from tests import tiny


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
    with pytest.raises(EmolabError, match=r"3 layers, d_model 32, .* \(2 layers, d_model 32"):
        from_published(folder, model=tiny_gpt2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": [[1, 2]], "2": [[1, 2]]}', r"has layers \['0', '2'\]; expected '0', '1'"),
        ('{"1": [[1, 2]], "2": [[1, 2]]}', r"has layers \['1', '2'\]"),
        ('{"0": [[1, 2]], "one": [[1, 2]]}', r"has layers \['0', 'one'\]"),
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
    assert not (tmp_path / "gone off").exists()
