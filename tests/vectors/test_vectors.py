import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError
from emolab.base.labels import EMOTIONS
from emolab.models.load import load_model
from emolab.steering.steering import Steering, steered
from emolab.vectors import activations
from emolab.vectors.activations import ResponseMeans, response_means
from emolab.vectors.contrasts import contrast_weights
from emolab.vectors.reading import batch_means as passes_of
from emolab.vectors.vectors import EmotionVectors, extract_vectors, vectors_from_means
from tests import tiny

SITES = ("resid", "attn", "mlp", "head")
QUERIES = ("tell me about the park", "did you see the dog and the cat ?")
ANSWERS = {
    "neutral": ["it was a road", "the house was quiet and then rain"],
    "joy": ["happy and glad , so good !", "bright today !"],
    "fear": ["dark", "the cold dark sea , i feel it"],
}


def paired():
    """Each query answered under each condition."""
    return pd.DataFrame(
        [
            {
                "query_id": f"q{i}",
                "query": q,
                "emotion": "neutral",
                "condition": c,
                "prompt": f"<bos>{q}",
                "text": texts[i],
            }
            for i, q in enumerate(QUERIES)
            for c, texts in ANSWERS.items()
        ]
    )


@pytest.fixture(scope="module")
def means(tiny_llama):
    return response_means(tiny_llama, paired())


@pytest.fixture(scope="module")
def vectors(tiny_llama, means):
    return extract_vectors(tiny_llama, None, sites=SITES, means=means)


def test_a_vector_is_the_mean_difference_from_neutral(vectors, means):
    assert vectors.emotions == ("fear", "joy") and vectors.sites == SITES
    resid = means.means["resid"].astype(np.float64)
    rows = {c: means.index["condition"].to_numpy() == c for c in ANSWERS}
    expected = (resid[rows["joy"]] - resid[rows["neutral"]]).mean(0)
    np.testing.assert_allclose(vectors.get("resid", emotion="joy"), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(vectors.resid_norm, np.median(means.resid_norm[rows["neutral"]], axis=0))


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_gpt2"])
def test_heads_sum_to_attn(fixture, request):
    model = request.getfixturevalue(fixture)
    vectors = extract_vectors(model, paired())
    heads, attn = vectors.get("head").sum(2), vectors.get("attn")
    assert ((heads - attn).norm() / attn.norm()).item() < 1e-5


def test_stored_means_give_the_same_vectors(tiny_llama, vectors, tmp_path):
    fresh = extract_vectors(tiny_llama, paired(), sites=SITES, out=tmp_path)
    stored = ResponseMeans.load(tmp_path / "response_means.safetensors")
    from_file = EmotionVectors.load(tmp_path / "vectors.safetensors")
    for other in (from_file, extract_vectors(tiny_llama, paired(), sites=SITES, means=stored)):
        assert all(torch.equal(other.get(site), fresh.get(site)) for site in SITES)
    assert all(torch.equal(fresh.get(site), vectors.get(site)) for site in SITES)


def test_vectors_keep_the_means_that_they_are_of(means, vectors, tmp_path):
    whole = vectors.normalized() + vectors.normalized()
    assert all(v.means is means for v in (vectors, vectors.part("shared"), -vectors.part("specific"), whole))
    vectors.save(tmp_path / "vectors.safetensors")
    assert EmotionVectors.load(tmp_path / "vectors.safetensors").means is None
    means.save(tmp_path / "response_means.safetensors")
    found = EmotionVectors.load(tmp_path / "vectors.safetensors").means
    assert len(found if isinstance(found, ResponseMeans) else ResponseMeans.load(found)) == len(means)


def test_save_and_load_are_bit_equal_with_provenance(tiny_llama, vectors, tmp_path):
    vectors.save(tmp_path / "ev.safetensors")
    loaded = EmotionVectors.load(tmp_path / "ev.safetensors")
    assert all(torch.equal(loaded.get(site), vectors.get(site)) for site in SITES)
    assert torch.equal(loaded.resid_norm, vectors.resid_norm) and loaded.emotions == vectors.emotions
    assert loaded.meta == vectors.meta
    with safe_open(str(tmp_path / "ev.safetensors"), "pt") as file:
        header = file.metadata()
    assert header["fingerprint"] == tiny_llama.fingerprint and header["compat"] == "false"
    assert header["token_rule"] == "response" and header["baseline"] == "neutral"
    needed = "format model revision d_model n_layers n_heads sites emotions template_hash corpus_hash dtype n_responses"
    assert {*needed.split(), "tl_version", "emolab_version", "resid_norm"} <= set(header)
    assert loaded.meta["n_responses"] == {"fear": 2, "joy": 2, "neutral": 2}
    assert loaded.meta["n_pairs"] == {"fear": 2, "joy": 2}


def test_base_and_specific_sum_to_the_whole(vectors):
    base, specific = vectors.part("shared"), vectors.part("specific")
    assert base.emotions == ("shared",) and specific.emotions == vectors.emotions
    assert [v.meta["part"] for v in (vectors, base, specific)] == ["whole", "shared", "specific"]
    assert [v.meta["emotions"] for v in (base, specific)] == [["shared"], ["fear", "joy"]]
    same = {"specific": specific + specific, "shared": base - base, "whole": vectors - vectors}
    assert all(v.meta["part"] == part for part, v in same.items()) and (vectors + specific).meta["part"] == "whole"
    assert (specific + vectors).meta["part"] == "whole"
    for whole in (base + specific, specific + base):
        assert whole.emotions == vectors.emotions and whole.meta["part"] == "whole"
        for site in SITES:
            torch.testing.assert_close(whole.get(site), vectors.get(site), rtol=1e-5, atol=1e-6)
    for site in SITES:
        torch.testing.assert_close(base.get(site)[0], vectors.get(site).mean(0))
        assert specific.get(site).sum(0).abs().max() < 1e-5


def test_arithmetic(vectors):
    for site in SITES:
        x = vectors.get(site)
        assert torch.equal((0.5 * vectors).get(site), 0.5 * x)
        assert torch.equal((vectors + vectors).get(site), (2 * vectors).get(site))
        assert not (vectors - vectors).get(site).any()
        norms = vectors.normalized().get(site).norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    assert vectors.meta.get("steps") is None and (2 * vectors.part("specific")).meta["steps"] == ["specific", "* 2"]
    assert not (0 * vectors).normalized().get("resid").any()
    norms = (vectors * 1e-20).normalized().get("resid").norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    for wrong in (lambda: vectors + 1, lambda: vectors - 1, lambda: vectors * vectors):
        with pytest.raises(TypeError):
            wrong()


def test_what_was_done_is_told_and_noted(vectors):
    shape = f"resid, attn, mlp, head; {vectors.n_layers} layers, d_model {vectors.d_model}"
    assert repr(vectors) == f"EmotionVectors(whole: fear, joy; {shape}; tokens: response; {vectors.meta['model']})"
    bare = EmotionVectors(vectors.data, vectors.emotions, vectors.resid_norm, {})
    assert repr(bare.part("shared")) == f"EmotionVectors(shared: shared; {shape}; None)"
    assert repr(bare) == f"EmotionVectors(whole: fear, joy; {shape}; None)"
    noted = {"shared": vectors.part("shared"), "normalized": vectors.normalized(), f"+ {vectors!r}": vectors + vectors}
    assert all(changed.meta["steps"] == [step] for step, changed in noted.items())


def test_vectors_of_unlike_kind_do_not_add(vectors, means):
    others = [
        vectors_from_means(means, sites=("resid",)),
        EmotionVectors(vectors.data, ("anger", "joy"), vectors.resid_norm, vectors.meta),
        EmotionVectors(vectors.data, vectors.emotions, vectors.resid_norm, {**vectors.meta, "fingerprint": "other"}),
    ]
    for other in others:
        with pytest.raises(EmolabError, match="cannot add"):
            vectors + other


def test_get(vectors, tiny_llama):
    layers, heads, d = tiny_llama.n_layers, tiny_llama.n_heads, tiny_llama.d_model
    assert vectors.get("resid").shape == (2, layers, d) and vectors.get("head").shape == (2, layers, heads, d)
    assert vectors.get("resid", emotion="joy", layer=1).shape == (d,)
    assert torch.equal(vectors.get("head", emotion="joy", layer=-1, head=2), vectors.get("head")[1, -1, 2])
    assert torch.equal(vectors.get("resid", layer=-layers), vectors.get("resid")[:, 0])
    assert torch.equal(vectors.get("resid", layer=layers - 1), vectors.get("resid", layer=-1))
    assert torch.equal(vectors.get(), vectors.get("resid"))


def test_fields_are_kept_in_float32(vectors):
    data = {site: x.double() for site, x in vectors.data.items()}
    kept = EmotionVectors(data, list(vectors.emotions), vectors.resid_norm.double(), {})
    assert {x.dtype for x in (*kept.data.values(), kept.resid_norm)} == {torch.float32}
    assert kept.emotions == vectors.emotions and kept.sites == vectors.sites


def test_queries_weigh_the_same_and_lone_answers_are_left_out():
    rows = [
        ("a", "neutral"),
        ("a", "joy"),
        ("a", "joy"),
        ("b", "neutral"),
        ("b", "joy"),
        ("c", "joy"),
        ("d", "neutral"),
    ]
    index = pd.DataFrame(rows, columns=["query_id", "condition"])
    with pytest.warns(UserWarning, match="1 responses under joy"):
        assert contrast_weights(index, "joy").tolist() == [-0.5, 0.25, 0.25, -0.5, 0.5, 0, 0]
    unpaired = index.assign(query_id=[str(i) for i in range(7)])
    np.testing.assert_allclose(contrast_weights(unpaired, "joy"), [-1 / 3, 0.25, 0.25, -1 / 3, 0.25, 0.25, -1 / 3])


def test_vectors_are_summed_in_float64_and_the_norm_is_the_median_of_neutral_ones():
    rows = [(query, "", condition, 3) for query in "abc" for condition in ("neutral", "joy")]
    index = pd.DataFrame(rows, columns=["query_id", "emotion", "condition", "n_tokens"])
    x = np.float32([[[1e7]], [[1e7 + 1]]] * 3)  # in float32 a third of it is known to the nearest quarter
    vectors = vectors_from_means(ResponseMeans(index, {"resid": x}, np.float32([[1], [50], [2], [50], [9], [50]]), {}))
    assert vectors.get(emotion="joy").item() == pytest.approx(1, abs=1e-6) and vectors.resid_norm.tolist() == [2]


def test_means_must_fit_model_responses_and_sites(tiny_llama, tiny_gpt2, means):
    assert "head" not in vectors_from_means(means).sites
    with pytest.raises(EmolabError, match="needs neutral"):
        vectors_from_means(means.select(means.index["condition"] != "neutral"))
    resid = response_means(tiny_llama, paired(), sites=("resid",))
    with pytest.raises(EmolabError, match="no site 'attn'"):
        extract_vectors(tiny_llama, None, means=resid)


# The oracle: directions that are in the model's weights, put there without the help of anything that extracts.

WORD = {"anger": "bad", "disgust": "cold", "fear": "dark", "joy": "happy", "sadness": "sad"}
PLAIN = [w for w in tiny.WORDS if w.isalpha() and w not in {*WORD.values(), *EMOTIONS}]


def planted_model(directions):
    """A Llama that reads each emotion's word as "good" plus a direction, and whose blocks write little over it."""
    hf, tok = tiny.build(tiny.llama_config(), seed=1), tiny.tokenizer()
    embedding = hf.get_input_embeddings().weight
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight *= 0.1
            layer.mlp.down_proj.weight *= 0.1
        for word, direction in zip(WORD.values(), directions, strict=True):
            embedding[tok.vocab[word]] = embedding[tok.vocab["good"]] + direction
    return load_model((hf, tok))


def planted_texts(n=12):
    """Random sentences with one marked word; each condition has sentences of its own."""
    rng = np.random.default_rng(0)

    def sentences(word):
        for _ in range(n):
            words = list(rng.choice(PLAIN, rng.integers(4, 12)))
            words[rng.integers(len(words))] = word
            yield " ".join(words)

    return {condition: list(sentences(word)) for condition, word in [("neutral", "good"), *WORD.items()]}


def test_extraction_recovers_planted_directions():
    directions = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q[:5] * 12
    model = planted_model(directions)
    responses = responses_from_texts(planted_texts())
    vectors = extract_vectors(model, responses, sites=("resid",))
    assert vectors.emotions == EMOTIONS
    cosine = torch.nn.functional.cosine_similarity(vectors.get("resid")[:, :, None], directions[None, None], dim=-1)
    own = cosine.diagonal(dim1=0, dim2=2)  # [layer, emotion]
    assert own.min() > 0.95, own
    assert (cosine - torch.diag_embed(own).permute(1, 0, 2)).abs().max() < 0.2

    # The control: with labels dealt out at random there is nothing to recover.
    shuffled = responses.assign(condition=np.random.default_rng(0).permutation(responses["condition"]))
    nothing = extract_vectors(model, shuffled, sites=("resid",)).get("resid")
    assert torch.nn.functional.cosine_similarity(nothing, directions[:, None], dim=-1).abs().mean() < 0.5


def test_extraction_names_the_one_head_that_carries_a_planted_direction():
    """All heads but head 2 of layer 1 write nothing: what attention adds under an emotion must be found there alone."""
    directions = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q[:5] * 12
    model = planted_model(directions)
    with torch.no_grad():
        for number, layer in enumerate(model.hf.model.layers):
            kept = layer.self_attn.o_proj.weight[:, 16:24].clone() if number == 1 else 0
            layer.self_attn.o_proj.weight.zero_()
            layer.self_attn.o_proj.weight[:, 16:24] = kept
    vectors = extract_vectors(model, responses_from_texts(planted_texts()))
    norms = vectors.get("head").norm(dim=-1)
    assert (norms > 0).nonzero()[:, 1:].unique(dim=0).tolist() == [[1, 2]] and norms[:, 1, 2].min() > 0
    torch.testing.assert_close(vectors.get("head", layer=1, head=2), vectors.get("attn", layer=1), rtol=1e-4, atol=1e-5)


def test_means_that_a_folder_holds_are_not_measured_again(tiny_llama, tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(activations, "batch_means", lambda *a: passes.append(len(a[1])) or passes_of(*a))
    call = lambda table=None, **o: extract_vectors(  # noqa: E731
        tiny_llama, paired() if table is None else table, **{"sites": SITES, "out": tmp_path, **o}
    )

    def measured(**options) -> int:
        passes.clear()
        call(**options)
        return sum(passes)

    tiny_llama.hf(torch.tensor([[1, 2]]), output_hidden_states=True)  # leaves hooks on the model that change nothing
    first = call()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".safetensors"}
    rows = len(first.means)
    assert sum(passes) == rows and measured() == 0 == measured(sites=("attn",))
    again = call()
    assert all(torch.equal(again.get(site), first.get(site)) for site in SITES) and again.meta == first.meta
    assert files == {name: (tmp_path / name).read_bytes() for name in files}
    other = paired().assign(text=lambda t: t["text"] + " so")
    every = lambda tokens: [True] * len(tokens)  # noqa: E731
    for change in ({"tokens": "last"}, {"table": other}, {"out": tmp_path / "new"}, {"tokens": every}):
        assert measured(**change) == rows
    assert measured(tokens=every) == rows, "what a function does is not known from its name"
    assert measured() == rows and measured() == 0
    with steered(tiny_llama, Steering(first, {"joy": 2.0}, layers=[1], positions="all")):
        assert measured() == rows, "the steered model's means are others"
    assert measured() == rows
    handle = tiny_llama.hf.model.layers[0].register_forward_hook(lambda module, args, output: None)
    try:
        assert measured() == rows
    finally:
        handle.remove()
    (tmp_path / "response_means.safetensors").write_bytes(b"half")
    assert measured() == rows and measured() == 0
    assert measured(sites=("resid",)) == 0 == measured(), "the file keeps its sites"
