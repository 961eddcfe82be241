"""One tiny random model of each architecture family, in a directory as `save_pretrained` writes it.

`python -m tests.families` runs every check on every family and writes docs/families.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from emolab.answers.generation import generate
from emolab.answers.writing import Writing
from emolab.models.load import load_model
from emolab.models.model import Model
from emolab.models.prompts import Batch, encode, render_prompts
from tests import chat_templates as chats
from tests import tiny

TEXT = """Once upon a time there was a little girl named Lily. She loved to play in the park with her dog.
One day it rained, and the dog ran away. Lily was very sad, and she cried and cried. Then her friend Tom came.
"Do not be afraid," said Tom. "We will look for him." They walked down the dark road. It was cold and scary.
They saw a big house. Something barked! Lily was so happy. "There you are!" she said, and she laughed with joy.
How did you feel when the old man was angry? Tell me about the park, the rain, the cat and the sun over the sea.
Answer with anger, disgust, fear, joy or sadness. You are a helpful assistant. Today Date: 26 Jul 2024.
"""
# Random weights repeat themselves by chance; their texts are compared, not read.
UNPENALISED = Writing(repetition_penalty=1.0)
QUERIES = ["Tell me about the park.", "How?", "Was the dog sad when it rained? Tom laughed."]
TEXTS = {
    "neutral": ["There was a park.", "They walked.", "It was cold."],
    "joy": ["Happy! So happy!", "Joy", "He laughed, and the sun came."],
}
NEW = 6  # tokens in a generated answer
SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
PLAIN = dict(**SHAPE, num_key_value_heads=2, max_position_embeddings=256)
WIDE = dict(**PLAIN, head_dim=16)  # heads wider than hidden_size / num_attention_heads
WINDOW = dict(**PLAIN, head_dim=8, sliding_window=8)
VISION = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What tells one family from another: config, tokenizer, chat template, special tokens."""

    config: str
    fields: dict[str, Any]
    layers: str = "model.layers"
    norm: str = "model.norm"  # behind the last layer
    chat: str | None = None
    pieces: bool = False  # SentencePiece-like tokenizer; else byte-level BPE
    bos: str | None = None
    eos: str = "<|endoftext|>"
    stop: str | None = None  # ends a turn; generation_config alone knows it
    pad: str | None = None
    add_bos: bool = False  # the tokenizer by itself puts BOS first
    special: tuple[str, ...] = ()


_CHATML = dict(eos="<|im_end|>", stop="<|endoftext|>", pad="<|endoftext|>", special=("<|im_start|>",))
_INST = dict(pieces=True, bos="<s>", eos="</s>", add_bos=True, special=("[INST]", "[/INST]"))
_GEMMA = dict(pieces=True, bos="<bos>", eos="<eos>", pad="<pad>", add_bos=True)
_TURNS = dict(**_GEMMA, stop="<end_of_turn>", special=("<start_of_turn>",))
_GPT = dict(bos="<|endoftext|>", eos="<|endoftext|>")
FAMILIES = {
    "Llama 3": Family(
        "LlamaConfig", PLAIN, chat=chats.LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>", stop="<|eot_id|>",
        add_bos=True, special=("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "Mistral": Family("MistralConfig", WINDOW, chat=chats.MISTRAL, **_INST),
    "Mixtral": Family("MixtralConfig", {**PLAIN, "num_local_experts": 4}, chat=chats.MIXTRAL, **_INST),
    "Qwen 2.5": Family("Qwen2Config", PLAIN, chat=chats.QWEN25, **_CHATML),
    "Qwen 3": Family("Qwen3Config", WIDE, chat=chats.QWEN3, **_CHATML),
    "Qwen 3 MoE": Family(
        "Qwen3MoeConfig", {**WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        chat=chats.QWEN3, **_CHATML,
    ),
    "Gemma 2": Family("Gemma2Config", WINDOW, chat=chats.GEMMA2, **_TURNS),
    "Gemma 3": Family("Gemma3TextConfig", {**WINDOW, "sliding_window_pattern": 2}, chat=chats.GEMMA3, **_TURNS),
    "Gemma 3, images": Family(
        "Gemma3Config", {"text_config": WINDOW, "vision_config": VISION, "mm_tokens_per_image": 4}, chat=chats.GEMMA3,
        layers="model.language_model.layers", norm="model.language_model.norm", **_TURNS,
    ),
    "Gemma 4": Family(
        "Gemma4TextConfig",
        {
            **WINDOW, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
            "global_head_dim": 16, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 8,
        },
        chat=chats.GEMMA4, **_GEMMA, stop="<turn|>", special=("<|turn>",),
    ),
    "Phi 2": Family("PhiConfig", {**SHAPE, "partial_rotary_factor": 0.5}, norm="model.final_layernorm", **_GPT),
    "Phi 3": Family(
        "Phi3Config", PLAIN, chat=chats.PHI3, pieces=True, bos="<s>", stop="<|end|>", pad="<|endoftext|>",
        special=("<|system|>", "<|user|>", "<|assistant|>"),
    ),
    "GPT-2": Family(
        "GPT2Config", dict(n_embd=32, n_layer=3, n_head=4, n_positions=256), layers="transformer.h",
        norm="transformer.ln_f", **_GPT,
    ),
    "GPT-NeoX": Family(
        "GPTNeoXConfig", SHAPE, layers="gpt_neox.layers", norm="gpt_neox.final_layer_norm", **_GPT
    ),
    "OLMo 2": Family("Olmo2Config", PLAIN, chat=chats.OLMO2, pad="<|pad|>", **_GPT),
    "Falcon": Family(
        "FalconConfig", {k: v for k, v in SHAPE.items() if k != "intermediate_size"}, layers="transformer.h",
        norm="transformer.ln_f",
    ),
    "Granite": Family(
        "GraniteConfig",
        {
            **PLAIN, "tie_word_embeddings": True, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
            "attention_multiplier": 1.0, "logits_scaling": 8.0,
        },
        chat=chats.GRANITE, bos="<|end_of_text|>", eos="<|end_of_text|>", pad="<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>"),
    ),
    "gpt-oss": Family(
        "GptOssConfig", {**WINDOW, "max_position_embeddings": 131072, "num_local_experts": 4, "num_experts_per_tok": 2},
        chat=chats.HARMONY, bos="<|startoftext|>", eos="<|return|>", stop="<|end|>", pad="<|endoftext|>",
        special=("<|start|>", "<|message|>"),
    ),
}  # fmt: skip


@cache
def _trained(pieces: bool) -> str:
    """A BPE tokenizer of 400 tokens, trained on TEXT; as JSON, since tokenizers are changed by their users."""
    core = Tokenizer(models.BPE(byte_fallback=pieces, unk_token="<unk>" if pieces else None))
    if pieces:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        first = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=first, show_progress=False)
    else:
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXT.splitlines(), trainer)
    return core.to_str()


def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """The family's tokenizer, with as many special tokens as it has, and its chat template."""
    core = Tokenizer.from_str(_trained(family.pieces))
    named = [t for t in (family.bos, family.eos, family.stop, family.pad) if t]
    core.add_special_tokens(list(dict.fromkeys([*named, *family.special])))
    if family.add_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, core.token_to_id(family.bos))]
        )
    tok = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=family.bos, eos_token=family.eos, pad_token=family.pad,
        unk_token="<unk>" if family.pieces else None,
    )  # fmt: skip
    tok.chat_template = family.chat
    return tok


def save(name: str, directory: Path) -> Path:
    """Write the model, its tokenizer and its generation_config.json."""
    family = FAMILIES[name]
    tok = tokenizer(family)
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    fields = {**family.fields, "vocab_size": len(tok), **ids}
    if "text_config" in fields:
        fields["text_config"] = {**fields["text_config"], "vocab_size": len(tok), **ids}
        fields["image_token_index"] = 5
    if "hidden_size_per_layer_input" in fields:
        fields["vocab_size_per_layer_input"] = len(tok)
    model = tiny.build(getattr(transformers, family.config)(**fields), seed=3)
    shape = model.config.get_text_config()
    if shape.tie_word_embeddings:  # else every token would be followed by itself
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.1 / getattr(shape, "embedding_multiplier", 1.0))
    stops = [tok.convert_tokens_to_ids(t) for t in (family.eos, family.stop) if t]
    # A repetition penalty, as Qwen's has: it must not reach our greedy texts.
    model.generation_config = GenerationConfig(eos_token_id=stops, repetition_penalty=1.1, do_sample=True)
    return tiny.save(directory, model, tok)


@dataclass
class Case:
    """A family's model as loaded from its directory."""

    name: str
    directory: Path

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    @cached_property
    def model(self) -> Model:
        return load_model(self.directory, device="cpu")

    @cached_property
    def vectors(self):
        return tiny.random_vectors(self.model, scale=0.5)

    @cached_property
    def prompts(self) -> dict[str, list[str]]:
        return {condition: render_prompts(self.model, QUERIES, condition) for condition in TEXTS}

    def responses(self) -> pd.DataFrame:
        rows = [
            (f"q{i}", QUERIES[i], condition, self.prompts[condition][i], text)
            for condition, texts in TEXTS.items()
            for i, text in enumerate(texts)
        ]
        return pd.DataFrame(rows, columns=["query_id", "query", "condition", "prompt", "text"])

    def batch(self) -> tuple[Batch, list[tuple[int, int]]]:
        """The neutral prompts, and each row's (padding, own tokens)."""
        batch = encode(self.model, self.prompts["neutral"])
        own = batch.attention_mask.sum(1).tolist()
        return batch, [(batch.prompt_len - n, n) for n in own]

    @cached_property
    def greedy(self) -> list[str]:
        return generate(self.model, QUERIES, max_new_tokens=NEW, writing=UNPENALISED)


def greedy(runner: Any, batch: Batch) -> torch.Tensor:
    """Tokens from Hugging Face's own loop: [row, prompt and NEW tokens]."""
    return runner.generate(
        batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=NEW, do_sample=False,
        repetition_penalty=1.0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip


if __name__ == "__main__":
    from tests import family_docs

    print(family_docs.write())
