"""The vectors that the package ships: what they hold, whose they are, and that the script's settings are theirs."""

from __future__ import annotations

import pytest
import torch

import emolab
from emolab.base.errors import EmolabError, MismatchError
from emolab.base.labels import EMOTIONS
from emolab.vectors.vectors import SHIPPED
from tests import tiny
from tools import ship_vectors

FILE = SHIPPED / "smollm2.safetensors"


@pytest.fixture(scope="module")
def shipped():
    return emolab.load_vectors("smollm2")


def test_a_small_file_with_all_layers_of_two_sites(shipped):
    assert FILE == ship_vectors.SHIPPED and FILE.stat().st_size < 1_000_000
    assert [file.name for file in SHIPPED.iterdir() if file.suffix == ".safetensors"] == [FILE.name]
    assert shipped.emotions == EMOTIONS and set(shipped.sites) == set(ship_vectors.SITES) == {"resid", "attn"}
    for site in shipped.sites:
        data = shipped.get(site)
        assert data.shape == (5, 30, 576) and torch.isfinite(data).all() and (data.norm(dim=-1) > 0).all()
    assert shipped.means is None and torch.equal(emolab.load_vectors().get("attn"), shipped.get("attn"))


def test_they_say_where_they_come_from(shipped, smollm2):
    meta = shipped.meta
    assert meta["fingerprint"] == smollm2.fingerprint and meta["model"] == "smollm2" and meta["dtype"] == "float32"
    assert meta["source"] == "frames" and meta["baseline"] == "mean of 64 labels" and meta["token_rule"] == "response"
    assert {"corpus_hash", "template_hash", "read_behind", "emolab_version", "tl_version", "revision"} <= set(meta)
    assert meta["selected"] == list(EMOTIONS) and set(meta["n_responses"]) > set(EMOTIONS)


def test_their_breaking_alphas_are_those_of_the_scripts_settings(shipped):
    steerings = list(ship_vectors.settings(shipped))
    assert list(shipped.meta["breaking"]) == [steering.breaking_key for steering in steerings] and len(steerings) == 5
    for setting in ship_vectors.SETTINGS:
        steering = emolab.Steering(shipped, dict.fromkeys(EMOTIONS, 2.0), unit="breaking", **setting)
        alphas = shipped.meta["breaking"][steering.breaking_key]
        assert tuple(alphas) == EMOTIONS and min(alphas.values()) > 0
        assert steering.in_vectors() == {emotion: 2 * alpha for emotion, alpha in alphas.items()}
    with pytest.raises(EmolabError, match="do not know where text breaks for joy at site=resid layers=0-29"):
        emolab.Steering(shipped, {"joy": 1.0}, unit="breaking")


@pytest.mark.slow
def test_the_script_reads_the_same_vectors_from_the_same_texts(shipped, smollm2):
    """All frames of all 64 words, since the baseline is the mean over them."""
    again = ship_vectors.vectors_from(smollm2, shipped.meta["source"])
    assert again.meta["corpus_hash"] == shipped.meta["corpus_hash"]
    for site in shipped.sites:
        torch.testing.assert_close(again.get(site), shipped.get(site), rtol=1e-3, atol=1e-3)


def test_other_weights_refuse_them(shipped, tiny_llama):
    steering = emolab.Steering(shipped, {"joy": 1.0}, site="attn", layers="late", unit="breaking")
    with pytest.raises(MismatchError, match="vectors are of another model: 'smollm2' .30 layers, d_model 576"):
        emolab.generate(tiny_llama, "tell me about the park .", steering=steering)
    other = emolab.load_model(
        (tiny.build(tiny.llama_config(num_hidden_layers=30, hidden_size=576)), tiny.tokenizer()), device="cpu"
    )
    with pytest.raises(MismatchError, match=f"fingerprint {other.fingerprint}.; vectors.for_model"):
        emolab.generate(other, "tell me about the park .", steering=steering)


def test_a_name_a_file_or_one_clear_error(tiny_llama, tmp_path, monkeypatch):
    own = tiny.random_vectors(tiny_llama)
    own.save(tmp_path / "own.safetensors")
    for path in (tmp_path / "own.safetensors", str(tmp_path / "own.safetensors")):
        assert torch.equal(emolab.load_vectors(path).get("attn"), own.get("attn"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert emolab.load_vectors("~/own.safetensors").emotions == own.emotions
    for name in ("llama", "smollm2.safetensors", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(EmolabError, match="no vectors '.*; bundled are smollm2; or give the path of a saved file"):
            emolab.load_vectors(name)
    with pytest.raises(EmolabError, match="no vectors 3; bundled are smollm2"):
        emolab.load_vectors(3)  # pyright: ignore[reportArgumentType]
