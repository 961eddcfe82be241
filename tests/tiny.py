"""Tiny random models with a word-level tokenizer, written as ordinary Hugging Face directories."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

WORDS = (
    "tell me about the park a walk in rain was quiet and i saw dog cat house road sun sea how did you feel when it we "
    "they he she joy sadness anger fear disgust great little answer with happy sad glad bright dark cold warm good bad "
    "today then so very . , ! ?"
).split()
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
)


def tokenizer(*, chat: str | None = CHAT, add_bos: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """Word-level, lower case; ids: <bos> 0, <eos> 1, <pad> 2, <unk> 3, roles 4 to 6, then the words."""
    special = ["<bos>", "<eos>", "<pad>", "<unk>", "<system>", "<user>", "<assistant>"]
    vocab = {t: i for i, t in enumerate(special + list(dict.fromkeys(WORDS)))}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if add_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 0)]
        )
    tok = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>" if pad else None,
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
    )
    tok.chat_template = chat
    return tok


def _vocab_size() -> int:
    return len(tokenizer())


# Two layers, as families that are close to Llama name them.
SHAPE = dict(
    vocab_size=_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)  # fmt: skip


def gemma2_config() -> Gemma2Config:
    """Two layers with a norm behind attention and MLP, which scales what they write token by token."""
    return Gemma2Config(**SHAPE, max_position_embeddings=128, query_pre_attn_scalar=8)


def llama_config(**changes) -> LlamaConfig:
    """Three layers, four heads that share two key-value heads."""
    fields = dict(
        vocab_size=_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return LlamaConfig(**{**fields, **changes})


def gpt2_config(**changes) -> GPT2Config:
    """Two layers, absolute positions."""
    fields = dict(
        vocab_size=_vocab_size(), n_embd=32, n_layer=2, n_head=4, n_positions=96, bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    return GPT2Config(**{**fields, **changes})


def build(config, seed: int = 0):
    """A random model whose weights are large enough for different prompts to give different texts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                norm = p.ndim == 1 and name.endswith("weight")
                p.copy_(torch.randn_like(p) * 0.2 + (1.0 if norm else 0.0))
        return model


def passes(model, monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of what the plain model reads from here on, [rows, tokens] a pass."""
    read, forward = [], model.hf.forward

    @functools.wraps(forward)
    def counting(input_ids, *args, **options):
        read.append(tuple(input_ids.shape))
        return forward(input_ids, *args, **options)

    monkeypatch.setattr(model.hf, "forward", counting)
    return read


def save(directory: Path, model, tok) -> Path:
    model.save_pretrained(directory)
    tok.save_pretrained(directory)
    return directory


def random_vectors(model, emotions=("anger", "joy", "sadness"), seed: int = 0, scale: float = 1.0):
    """Random EmotionVectors that fit a model, at every site; whole numbers over 64, so that sums of a few are exact."""
    from emolab.vectors.vectors import EmotionVectors

    draw = torch.Generator().manual_seed(seed)
    shape = (len(emotions), model.n_layers)
    tail = {"head": (model.n_heads, model.d_model)}
    data = {
        site: (torch.randn(*shape, *tail.get(site, (model.d_model,)), generator=draw) * 64 * scale).round() / 64
        for site in ("resid", "attn", "mlp", "head")
    }
    meta = {"model": model.name, "fingerprint": model.fingerprint}
    return EmotionVectors(data, emotions, torch.arange(1.0, model.n_layers + 1), meta)


# What a worker is told of a model that was loaded by name, without further options.
RECIPE = {
    "device_map": None, "dtype": "float32", "trust_remote_code": False, "chat_template": None, "tokenizer": None,
}  # fmt: skip
