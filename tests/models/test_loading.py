"""Where models come from, and what goes wrong on the way."""

from __future__ import annotations

import json
import shutil
import warnings

import httpx
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub import errors as hub
from safetensors.torch import save_file
from transformers import FalconConfig, HeliumConfig, T5Config
from transformers.integrations.bitnet import pack_weights
from transformers.utils import logging as hf_logging

from emolab.answers.generation import generate
from emolab.answers.responses import responses_from_texts
from emolab.base.errors import EmolabError
from emolab.models import pretrained
from emolab.models.load import load_model
from emolab.models.model import provenance
from emolab.models.pretrained import fast_bfloat16
from emolab.models.prompts import encode, render_prompts
from emolab.steering.steering import Steering
from emolab.vectors.activations import response_means
from emolab.vectors.vectors import extract_vectors
from tests import families, family_list, tiny

QUERIES = ["tell me about the park .", "how ?"]
TEXTS = responses_from_texts({"neutral": ["a road .", "the cat"], "joy": ["happy !", "so good ."]})
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def copy(tiny_llama_dir, tmp_path):
    """A copy of the tiny Llama's directory, to be damaged."""
    return shutil.copytree(tiny_llama_dir, tmp_path / "copy")


def refusal(source, **options) -> str:
    """The one line that loading ends in."""
    with pytest.raises(EmolabError) as error:
        load_model(source, **options)
    [line] = str(error.value).splitlines()
    return line


def edit(directory, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


# --- from the hub, without one


def test_a_cached_hub_model_is_pinned_to_its_commit(tiny_llama, tiny_llama_dir, tmp_path, monkeypatch, offline):
    """A cache as huggingface_hub writes it: what is loaded as main is recorded as the commit that main was."""
    place = tmp_path / "models--org--tiny"
    shutil.copytree(tiny_llama_dir, place / "snapshots" / SHA)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(SHA)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in (None, "main", SHA):
        model = load_model("org/tiny", revision=revision, device="cpu")
        assert (model.name, model.source, model.revision) == ("org/tiny", "org/tiny", SHA)
    assert model.fingerprint == tiny_llama.fingerprint and provenance(model)["revision"] == SHA
    line = refusal("org/tiny", revision="other")
    assert (
        "hub id not in the local cache" in line and "HF_HUB_OFFLINE is set" in line and "hf download org/tiny" in line
    )
    assert tiny_llama.revision is None and load_model(tiny_llama_dir, revision="v1", device="cpu").revision == "v1"


@pytest.mark.parametrize(
    "kind, says",
    [
        (hub.GatedRepoError, "gated: accept its terms at https://huggingface.co/org/name"),
        (hub.RevisionNotFoundError, "cannot load 'org/name': You are trying ... to access something"),
    ],
)
def test_what_the_hub_answers(kind, says, monkeypatch):
    """The hub's errors, wrapped in OSError as transformers does: on one line."""

    def answer(*args, **options):
        response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/org/name"))
        raise OSError("You are trying ...\nto access\nsomething") from kind("no", response=response)

    monkeypatch.setattr("emolab.models.pretrained.cached_file", answer)
    assert says in refusal("org/name", revision="v9")


# --- from a directory


def cut(file):
    file.write_bytes(file.read_bytes()[:-500])


DAMAGE = {
    "no config": (lambda d: (d / "config.json").unlink(), "in its config.json"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "not a valid JSON"),
    "unknown type": (lambda d: edit(d, model_type="nosuch"), "does not recognize this architecture"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "pass load_model(..., tokenizer=...)"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no file named model.safetensors"),
    "cut weights": (lambda d: cut(d / "model.safetensors"), "file not fully covered"),
    "a pointer": (lambda d: (d / "model.safetensors").write_text("version https://git-lfs"), "deserializing header"),
    "other shapes": (lambda d: edit(d, hidden_size=64), "other shapes than its config.json says"),
    "too few layers": (lambda d: edit(d, num_hidden_layers=5), "lack 18 of the tensors of LlamaForCausalLM"),
    "missing package": (lambda d: edit(d, quantization_config={"quant_method": "gptq", "bits": 4}), "requires"),
    "no language model": (lambda d: T5Config().save_pretrained(d), "for this kind of AutoModel: AutoModelForCausalLM"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_directories_end_in_one_line(what, copy):
    damage, says = DAMAGE[what]
    damage(copy)
    line = refusal(copy, device="cpu")
    assert says in line and str(copy) in line and len(line) < 600


def test_what_is_no_model_or_no_device(tiny_llama_dir, copy):
    assert "no such directory" in refusal("/no/such/dir") and "no such directory" in refusal("./none")
    assert "no such directory" in refusal(copy / "config.json") and "expected 'smollm2'" in refusal(42)
    assert "cannot use device 'nonsense'" in refusal(copy, device="nonsense")
    assert "not both" in refusal(copy, device="cpu", device_map="auto")
    (copy / "tokenizer.json").unlink()
    assert load_model(copy, tokenizer=tiny.tokenizer(), device="cpu").tokenizer.chat_template == tiny.CHAT


def test_what_a_tokenizer_warns_of_reaches_the_user(copy, monkeypatch, capsys):
    """As transformers 5 warns of Mistral's: "You should set the `fix_mistral_regex=True` flag"."""
    read = pretrained.AutoTokenizer.from_pretrained

    def warns(place, *, fix_mistral_regex=None, **options):
        if fix_mistral_regex is None:
            hf_logging.get_logger("transformers.tokenization_utils").warning("set the `fix`\n flag")
        return read(place, **options)

    monkeypatch.setattr(pretrained.AutoTokenizer, "from_pretrained", warns)
    with pytest.warns(UserWarning, match="the tokenizer of .* warns: set the `fix` flag .*tokenizer={") as told:
        load_model(copy, device="cpu")
    assert len(told) == 1 and told[0].filename == __file__ and capsys.readouterr().err == ""
    with warnings.catch_warnings(action="error"):
        model = load_model(copy, tokenizer={"fix_mistral_regex": True}, device="cpu")
    assert model.recipe["tokenizer"] == {"fix_mistral_regex": True}, "workers read the same"
    with pytest.raises(EmolabError, match="options for reading one, and the model is given as an object"):
        load_model((model.hf, model.tokenizer), tokenizer={"fix_mistral_regex": True})


def test_weights_without_place_are_told(copy):
    edit(copy, num_hidden_layers=2)
    with pytest.warns(UserWarning, match="9 tensors .* have no place in LlamaForCausalLM"):
        assert load_model(copy, device="cpu").n_layers == 2


def test_foreign_code_runs_only_when_told(copy):
    """The code writes a file: it must not exist before the user has said yes."""
    mark = copy / "ran"
    (copy / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    edit(copy, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"})
    assert "trust_remote_code=True" in refusal(copy, device="cpu") and not mark.exists()
    model = load_model(copy, device="cpu", trust_remote_code=True)
    assert mark.exists() and type(model.hf).__name__ == "OwnModel" and generate(model, QUERIES, max_new_tokens=2)


def test_architectures_that_transformer_lens_does_not_know():
    fields = tiny.llama_config().to_dict()
    config = HeliumConfig(
        **{k: fields[k] for k in ("vocab_size", *family_list.SHAPE, "num_key_value_heads")}, head_dim=8
    )
    assert "no adapter for the architecture of 'HeliumForCausalLM'" in refusal((tiny.build(config), tiny.tokenizer()))


def falcon(**fields):
    shape = {k: v for k, v in family_list.SHAPE.items() if k != "intermediate_size"}
    return load_model((tiny.build(FalconConfig(vocab_size=len(tiny.tokenizer()), **shape, **fields)), tiny.tokenizer()))


def test_a_bridge_that_computes_something_else_is_refused():
    """TransformerLens leaves out Falcon's ALiBi, and cannot split its newer blocks."""
    model = falcon(alibi=True)
    for _ in range(2):
        with pytest.raises(EmolabError, match="otherwise than transformers does .logits off by"):
            extract_vectors(model, TEXTS, sites=("resid",))
    assert generate(model, QUERIES, max_new_tokens=2)  # runs on the model itself
    extract_vectors(falcon(), TEXTS)
    with pytest.raises(EmolabError, match="TransformerLens cannot bridge"):
        falcon(new_decoder_architecture=True, num_kv_heads=2)


def test_models_that_also_see_are_loaded_without_installing_anything(tmp_path, monkeypatch):
    """boot_transformers looks for an image processor and, without torchvision, installs that with pip."""
    from transformer_lens.model_bridge.sources.transformers import helpers

    def never(*args, **options):
        raise AssertionError("something was installed or looked for")

    monkeypatch.setattr(helpers, "_ensure_torchvision", never)
    monkeypatch.setattr("subprocess.check_call", never)
    model = load_model(families.save("Gemma 3, images", tmp_path), device="cpu")
    assert type(model.hf).__name__ == "Gemma3ForConditionalGeneration" and model.n_layers == 3


# --- dtype="auto"


@pytest.mark.parametrize(
    "own, fast, expected",
    [
        ("float32", True, "float32"), ("bfloat16", True, "bfloat16"), ("bfloat16", False, "float32"),
        ("float16", True, "float32"), ("float64", False, "float64"),
    ],
)  # fmt: skip
def test_auto_is_the_checkpoints_own_dtype_where_that_is_fast(own, fast, expected, tmp_path, monkeypatch):
    tiny.save(tmp_path, tiny.build(tiny.llama_config()).to(getattr(torch, own)), tiny.tokenizer())
    monkeypatch.setattr("emolab.models.pretrained.fast_bfloat16", lambda: fast)
    model = load_model(tmp_path, device="cpu", dtype="auto")
    assert model.dtype == model.bridge.cfg.dtype == getattr(torch, expected) and model.recipe["dtype"] == expected
    assert {p.dtype for p in model.hf.parameters()} == {model.dtype}
    same = load_model(tmp_path, device="cpu", dtype=expected)
    assert generate(model, QUERIES, max_new_tokens=6) == generate(same, QUERIES, max_new_tokens=6)
    assert model.fingerprint == same.fingerprint


def test_which_processors_multiply_bfloat16(monkeypatch):
    for has, fast in (
        ({"avx2": True, "avx512_bf16": False}, False),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has, raising=False)
        assert fast_bfloat16() is fast
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not fast_bfloat16()


# --- several devices, quantised weights


def test_device_map(tiny_llama, tiny_llama_dir, copy):
    everywhere = load_model(tiny_llama_dir, device_map={"": "cpu"})
    assert generate(everywhere, QUERIES, max_new_tokens=6) == generate(tiny_llama, QUERIES, max_new_tokens=6)
    parts = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    assert "lie on disk" in refusal(tiny_llama_dir, device_map={**parts, "lm_head": "cpu"})


def test_a_dispatched_model(tiny_llama):
    """accelerate moves inputs with a hook on every module: twin, bridge and steering must go on working under these."""
    from accelerate import dispatch_model

    hf = tiny.build(tiny.llama_config())
    layers = {f"model.layers.{i}": "cpu" for i in range(3)}
    others = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    hf = dispatch_model(hf, {**layers, **dict.fromkeys(others, "cpu")}, main_device="cpu", force_hooks=True)
    assert hasattr(hf.model.layers[0], "_hf_hook")
    model, vectors = load_model((hf, tiny.tokenizer())), tiny.random_vectors(tiny_llama, scale=0.5)
    assert {p.data_ptr() for p in model.hf.parameters()} == {p.data_ptr() for p in model.bridge.parameters()}
    bridged = load_model(model.bridge, tokenizer=model.tokenizer)
    for steering in (None, Steering(vectors, {"joy": 1.0}), Steering(vectors, {"joy": 1.0}, site="attn")):
        expected, *others = (
            generate(m, QUERIES, steering=steering, max_new_tokens=8) for m in (tiny_llama, model, bridged)
        )
        assert others == [expected] * 2
    ours, plain = (response_means(m, TEXTS) for m in (model, tiny_llama))
    assert all((ours.means[site] == plain.means[site]).all() for site in ours.sites)


def test_a_quantised_directory(copy, tiny_llama_dir):
    """BitNet, the one quantisation that transformers runs on a CPU without further packages."""
    state = {}
    for name, value in tiny.build(tiny.llama_config()).state_dict().items():
        if name.endswith("_proj.weight"):
            scale = value.abs().mean()
            state[name.replace("weight", "weight_scale")] = (1 / scale).reshape(1)
            value = pack_weights((value / scale).round().clamp(-1, 1))
        state[name] = value.contiguous()
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    edit(copy, quantization_config={"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]})
    with torch.compiler.set_stance("force_eager"):  # its kernels are compiled otherwise, which takes half a minute
        model = load_model(copy, device="cpu")
        assert model.hf.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
        ids = encode(model, render_prompts(model, QUERIES[:1])).input_ids
        torch.testing.assert_close(model(ids), model.hf(ids).logits, atol=1e-4, rtol=1e-4)
        vectors = extract_vectors(model, TEXTS, sites=("resid", "attn", "mlp"))
        steered = generate(model, QUERIES, steering=Steering(vectors, {"joy": 4.0}), max_new_tokens=8)
        assert steered != generate(model, QUERIES, max_new_tokens=8)
        with pytest.raises(EmolabError, match="quantised.*without 'head'"):
            extract_vectors(model, TEXTS)
