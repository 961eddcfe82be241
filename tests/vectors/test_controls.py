"""Controls are as long as the vectors, point elsewhere, and come from the same responses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from emolab.steering.steering import Steering, match_steering_norm
from emolab.vectors.controls import match_summed_norm, other_like, random_like, shuffled_like
from emolab.vectors.vectors import EmotionVectors, extract_vectors, vectors_from_means
from tests import oracle, tiny

QUERIES = [f"tell me about the {word} ." for word in ("park", "rain", "dog", "house", "sea", "cat")]


def cosine(a: EmotionVectors, b: EmotionVectors, site="resid") -> torch.Tensor:
    return torch.cosine_similarity(a.get(site), b.get(site), dim=-1)


def assert_equal_norm(control: EmotionVectors, vectors: EmotionVectors) -> None:
    assert control.emotions == vectors.emotions and control.sites
    for site in control.sites:
        ours, theirs = control.get(site), vectors.get(site)
        assert ours.shape == theirs.shape and theirs.norm(dim=-1).min() > 0
        torch.testing.assert_close(ours.norm(dim=-1), theirs.norm(dim=-1), rtol=1e-5, atol=1e-6)
    assert torch.equal(control.resid_norm, vectors.resid_norm)


@pytest.fixture(scope="module")
def extracted(tiny_llama, tmp_path_factory):
    """Vectors of written responses, and the folder that holds them with their means."""
    out = tmp_path_factory.mktemp("extracted")
    table = oracle.responses(tiny_llama, QUERIES, ("anger", "joy", "sadness"))
    sites = ("resid", "attn", "mlp", "head")
    return extract_vectors(tiny_llama, table, sites=sites, out=out), out


def test_random_has_the_norm_of_every_vector_and_its_seed_decides(tiny_llama):
    vectors = tiny.random_vectors(tiny_llama)
    control = random_like(vectors, seed=3)
    assert control.sites == ("resid", "attn", "mlp", "head") and control.meta["control"] == "random"
    assert control.meta["fingerprint"] == tiny_llama.fingerprint, "else steering would refuse it"
    assert_equal_norm(control, vectors)
    again, other = random_like(vectors, seed=3), random_like(vectors, seed=4)
    for site in vectors.sites:
        assert torch.equal(control.get(site), again.get(site))
        assert torch.cosine_similarity(control.get(site), other.get(site), dim=-1).max() < 0.95
    for part in (vectors.part("specific"), vectors.part("shared")):
        assert_equal_norm(random_like(part), part)


def test_random_is_nearly_orthogonal_where_there_is_room():
    shape = (len(EMOTIONS), 4, 2048)
    data = {"resid": torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 7}
    vectors = EmotionVectors(data, EMOTIONS, torch.ones(4), {})
    controls = [random_like(vectors, seed=seed) for seed in range(3)]
    for control in controls:
        assert cosine(control, vectors).abs().max() < 0.12  # 5 standard deviations of 1 / sqrt(2048)
    assert cosine(controls[0], controls[1]).abs().max() < 0.12
    within = controls[0].get("resid")
    assert torch.cosine_similarity(within[0], within[1], dim=-1).abs().max() < 0.12, "one direction for all emotions"
    same_seed = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.cosine_similarity(controls[0].get("resid"), same_seed, dim=-1).abs().max() < 0.12


def test_shuffled_has_the_norm_of_every_vector_and_its_seed_decides(tiny_llama, extracted):
    vectors, _ = extracted
    for of in (vectors, vectors.part("specific"), vectors.part("shared"), 0.5 * vectors):
        assert_equal_norm(shuffled_like(of, model=tiny_llama, seed=1), of)
    control = shuffled_like(vectors, model=tiny_llama, seed=1)
    assert control.sites == vectors.sites and control.meta["control"] == "shuffled"
    again, other = (shuffled_like(vectors, model=tiny_llama, seed=seed) for seed in (1, 2))
    assert torch.equal(control.get("resid"), again.get("resid"))
    assert cosine(control, other).min() < 0.95 and cosine(control, vectors).min() < 0.95
    assert shuffled_like(vectors).sites == ("resid", "attn", "mlp"), "heads need the model's weights"


def test_shuffled_of_specific_is_the_specific_part_of_the_shuffled(tiny_llama, extracted):
    """It sums to zero in direction only, so it is compared with what it should be."""
    vectors, _ = extracted
    part, whole = (shuffled_like(of, seed=0).get("resid") for of in (vectors.part("specific"), vectors))
    raw = whole.double()  # the norms of the unmatched shuffled vectors are unknown, their plane is not
    plane = torch.linalg.qr(raw.permute(1, 2, 0)).Q  # [layer, d_model, emotion]
    inside = torch.einsum("lde,xld->xle", plane, part.double())
    torch.testing.assert_close(inside.norm(dim=-1), part.double().norm(dim=-1), rtol=1e-4, atol=1e-6)
    assert torch.linalg.matrix_rank(part[:, 0], atol=1e-4) == len(vectors.emotions) - 1


def test_shuffled_finds_the_means_beside_the_file(tiny_llama, extracted):
    vectors, out = extracted
    loaded = EmotionVectors.load(out / "vectors.safetensors")
    for ours, theirs in ((loaded, vectors), (loaded.part("specific"), vectors.part("specific"))):
        fresh, stored = (shuffled_like(x, model=tiny_llama, seed=5) for x in (theirs, ours))
        for site in fresh.sites:
            torch.testing.assert_close(stored.get(site), fresh.get(site))


def test_shuffled_without_means_says_what_to_do(tiny_llama, extracted, tmp_path):
    vectors, _ = extracted
    vectors.save(tmp_path / "alone.safetensors")
    for lost in (EmotionVectors.load(tmp_path / "alone.safetensors"), tiny.random_vectors(tiny_llama)):
        with pytest.raises(EmolabError, match=r'extract_vectors\(\.\.\., out=folder\).*leave "shuffled" out'):
            shuffled_like(lost, model=tiny_llama)


def test_shuffled_refuses_the_means_of_other_responses_or_another_model(tiny_llama, extracted, tmp_path):
    vectors, _ = extracted
    vectors.save(tmp_path / "vectors.safetensors")
    path = tmp_path / "response_means.safetensors"
    others = oracle.responses(tiny_llama, QUERIES, ("anger", "joy", "sadness"), seed=9)
    extract_vectors(tiny_llama, others, sites=("resid",)).means.save(path)
    with pytest.raises(EmolabError, match="need the response means of these vectors"):
        shuffled_like(EmotionVectors.load(tmp_path / "vectors.safetensors"))
    of_another = dataclasses.replace(vectors.means, meta={**vectors.means.meta, "fingerprint": "0123456789abcdef"})
    of_another.save(path)
    with pytest.raises(EmolabError, match="need the response means of these vectors"):
        shuffled_like(EmotionVectors.load(tmp_path / "vectors.safetensors"))
    vectors.means.save(path)
    loaded = EmotionVectors.load(tmp_path / "vectors.safetensors")
    bound = loaded.for_model(dataclasses.replace(tiny_llama, fingerprint="0123456789abcdef"))
    assert shuffled_like(loaded).get().equal(shuffled_like(bound).get()), "also where they are lent to another model"


def test_the_sum_of_the_heads_is_matched_on_demand(extracted):
    vectors, _ = extracted
    loose = random_like(vectors)
    control = match_summed_norm(loose, vectors)
    ours, theirs = (x.get("head").sum(2).norm(dim=-1) for x in (control, vectors))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(loose.get("head").sum(2).norm(dim=-1), theirs, rtol=0.05)
    assert cosine(control, loose, "head").min() > 0.9999 and torch.equal(control.get("resid"), loose.get("resid"))


def test_the_sum_of_chosen_heads_is_matched(extracted):
    vectors, _ = extracted
    control = match_summed_norm(random_like(vectors), vectors, {0: [1, 2], 2: [3]})
    for layer, heads in ((0, [1, 2]), (2, [3])):
        ours, theirs = (x.get("head")[:, layer, heads].sum(1).norm(dim=-1) for x in (control, vectors))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_other_is_another_emotions_direction_at_the_own_norm(extracted):
    vectors, _ = extracted
    control = other_like(vectors, {"joy": "sadness", "anger": "joy"})
    assert control.emotions == ("joy", "anger") and control.meta["control"] == "other"
    assert control.meta["fingerprint"] == vectors.meta["fingerprint"]
    for site in vectors.sites:
        for emotion, other in (("joy", "sadness"), ("anger", "joy")):
            ours, own, theirs = (
                control.get(site, emotion=emotion), vectors.get(site, emotion=emotion), vectors.get(site, emotion=other)
            )  # fmt: skip
            torch.testing.assert_close(ours.norm(dim=-1), own.norm(dim=-1), rtol=1e-5, atol=1e-6)
            assert torch.cosine_similarity(ours, theirs, dim=-1).min() > 0.9999
            assert torch.cosine_similarity(ours, own, dim=-1).max() < 0.999
    with pytest.raises(EmolabError, match="expected other ones of anger, joy, sadness"):
        other_like(vectors, {"joy": "joy"})
    with pytest.raises(EmolabError, match="unknown emotion 'calm'; expected one of anger, joy, sadness"):
        other_like(vectors, {"joy": "calm"})


@pytest.mark.parametrize("unit", ["vector", "residual"])
def test_a_mixture_of_random_vectors_is_made_as_long(extracted, unit):
    vectors, _ = extracted
    doses = {"anger": -0.5, "joy": 2.0}
    for site in ("resid", "head"):
        options = {"site": site, "layers": [0, 2], "unit": unit}
        wanted = Steering(vectors, doses, **options)
        loose = Steering(random_like(vectors), doses, **options)
        long = match_steering_norm(loose, wanted)
        assert not torch.allclose(loose.table().norm(dim=-1), wanted.table().norm(dim=-1), rtol=1e-2)
        torch.testing.assert_close(long.table().norm(dim=-1), wanted.table().norm(dim=-1), rtol=1e-5, atol=1e-6)
        cosine = torch.cosine_similarity(long.table()[[0, 2]], loose.table()[[0, 2]], dim=-1)
        assert cosine.min() > 0.9999 and not long.table()[1].any()


def test_heads_alone_need_the_model(extracted):
    vectors, _ = extracted
    heads = EmotionVectors({"head": vectors.get("head")}, vectors.emotions, vectors.resid_norm, vectors.meta)
    heads.means = vectors.means
    with pytest.raises(EmolabError, match="pass model="):
        shuffled_like(heads)


def test_labels_are_shuffled_within_each_query():
    """What belongs to the query cancels, however large: with labels dealt over all responses it would be everything."""
    means, _ = oracle.planted_means(query_size=0.0)
    size = np.random.default_rng(1).normal(size=24) * 100
    means.means["resid"][:, :, 0] = np.repeat(size, 6)[:, None]  # the same under all six conditions
    vectors = vectors_from_means(means, sites=("resid",))
    control = shuffled_like(vectors, seed=0).get("resid")
    assert control[..., 0].abs().max() < 1e-6 * control.norm(dim=-1).min()

    pooled = means.index.assign(query_id=[f"t-{i}" for i in range(len(means))])  # texts without queries: one pool
    loose = vectors_from_means(dataclasses.replace(means, index=pooled), sites=("resid",))
    control = shuffled_like(loose, seed=0).get("resid")
    assert (control[..., 0].abs() / control.norm(dim=-1)).median() > 0.9


def test_conditions_of_a_query_stay_the_same_ones(monkeypatch):
    """Where a query lacks conditions it lacks them in the control, too; nothing is borrowed from another query."""
    means, _ = oracle.planted_means(n_queries=9)
    keep = ~((means.index["query_id"] < "q-0004") & means.index["condition"].isin(["joy", "fear"])).to_numpy()
    means = means.select(keep)
    seen = []

    def record(shuffled, **_):
        seen.append(shuffled.index)
        return vectors_from_means(shuffled, sites=("resid",))

    monkeypatch.setattr("emolab.vectors.controls.vectors_from_means", record)
    shuffled_like(vectors_from_means(means, sites=("resid",)), seed=2)
    before, after = (t.groupby("query_id")["condition"].agg(sorted).to_dict() for t in (means.index, seen[0]))
    assert before == after and not seen[0]["condition"].equals(means.index["condition"])


def test_shuffled_loses_what_was_planted():
    means, truth = oracle.planted_means(n_queries=40)
    vectors = vectors_from_means(means, sites=("resid",))
    planted = torch.tensor(truth, dtype=torch.float32)
    found = torch.cosine_similarity(vectors.get("resid"), planted, dim=-1)
    assert found.min() > 0.95
    lost = [torch.cosine_similarity(shuffled_like(vectors, seed=s).get("resid"), planted, dim=-1) for s in range(20)]
    lost = torch.stack(lost)  # [seed, emotion, layer]
    assert lost.abs().mean() < 0.5 and lost.mean().abs() < 0.1, "some of it is left by chance, in no direction"
