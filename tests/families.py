"""One tiny random model of each architecture family, in a directory as `save_pretrained` writes it.

`python -m tests.families` runs every check on every family and writes docs/families.md.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
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
from emolab.base.errors import EmolabError
from emolab.models.load import load_model
from emolab.models.model import Model
from emolab.models.prompts import Batch, encode, render_prompts
from emolab.models.sites import SITES, site_layers
from tests import tiny
from tests.family_list import FAMILIES, Family

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
    model = tiny.build(getattr(transformers, family.config)(**fields), seed=family.seed)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):  # Gemma 4's, which is one until it is trained
            buffer.fill_(0.9)
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
    def sites(self) -> tuple[str, ...]:
        """The sites that some layer has."""
        return tuple(site for site in SITES if _has(self.model, site))

    @cached_property
    def vectors(self):
        """Random, and zero at layers without a site, as measured vectors are."""
        vectors = tiny.random_vectors(self.model, scale=0.5)
        for site in self.sites:
            vectors.data[site][:, sorted({*range(self.model.n_layers)} - {*site_layers(self.model, site)})] = 0
        return replace(vectors, data={site: vectors.data[site] for site in self.sites})

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


def _has(model: Model, site: str) -> bool:
    with contextlib.suppress(EmolabError):
        return bool(site_layers(model, site))
    return False


def greedy(runner: Any, batch: Batch) -> torch.Tensor:
    """Tokens from Hugging Face's own loop: [row, prompt and NEW tokens]."""
    return runner.generate(
        batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=NEW, do_sample=False,
        repetition_penalty=1.0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip


if __name__ == "__main__":
    from tests import family_docs

    print(family_docs.write())
