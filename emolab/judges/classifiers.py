"""Sequence classifiers as judges use them: loaded, texts cut into windows that fit, and the logits of all classes.

>>> classifier = load_classifier("path/to/mine", None)                                      # doctest: +SKIP
>>> classifier.logits([("I am so happy!", None)]).shape                                     # doctest: +SKIP
(1, 6)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from emolab.base.errors import EmolabError
from emolab.base.progress import progress_bar
from emolab.base.storage import user_path
from emolab.judges.windows import cut
from emolab.models.pretrained import quiet

MAX_TOKENS = 512
BATCH = 32  # texts that are read together


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier with its tokenizer: what it reads of texts, and the logits of all its classes."""

    source: str
    tokenizer: Any
    model: Any

    @property
    def classes(self) -> list[str]:
        names = self.model.config.id2label
        return [str(names.get(i, f"LABEL_{i}")) for i in range(self.model.config.num_labels)]

    def cut(self, texts: Sequence[str], beside: Sequence[str] = ()) -> tuple[list[str], np.ndarray, list[int]]:
        """The texts in windows that fit beside the longest of other sentences (`emolab.judges.windows`)."""
        room = self.tokenizer.model_max_length - self.tokenizer.num_special_tokens_to_add(bool(beside))
        return cut(self.tokenizer, texts, room - max(map(len, self._ids(beside)), default=0))

    def logits(self, inputs: list[tuple[str, str | None]]) -> Float[np.ndarray, "input class"]:
        """Of each (text, other text beside it or None); EmolabError where they are not finite."""
        todo = sorted(dict.fromkeys(inputs), key=lambda pair: len(pair[0]))  # those of a length in one batch
        logits_of: dict[tuple[str, str | None], np.ndarray] = {}
        with progress_bar("classify", len(todo)) as bar:
            for start in range(0, len(todo), BATCH):
                batch = todo[start : start + BATCH]
                texts, others = map(list, zip(*batch, strict=True))
                given = (texts,) if others[0] is None else (texts, others)
                encoded = self.tokenizer(*given, padding=True, truncation="only_first", return_tensors="pt")
                with torch.inference_mode():
                    values = self.model(**encoded.to(self.model.device)).logits.double().cpu().numpy()
                if not np.isfinite(values).all():
                    raise EmolabError(f"{self.source} gives logits that are not finite: its weights are damaged")
                logits_of.update(zip(batch, values, strict=True))
                bar.update(len(batch))
        return np.array([logits_of[pair] for pair in inputs]).reshape(len(inputs), len(self.classes))

    def of_texts(
        self, texts: Sequence[str], values: Float[np.ndarray, "text label"]
    ) -> Float[np.ndarray, "text label"]:
        """The values, NaN for texts that are not read: mostly unknown tokens, or spelled byte by byte."""
        unknown = self.tokenizer.unk_token_id
        unread = [
            2 * ids.count(unknown) > len(ids) or len(ids) > len(text) + 1
            for ids, text in zip(self._ids(texts), texts, strict=True)
        ]
        values[np.array(unread, bool)] = np.nan
        return values

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids if len(texts) else []


def load_classifier(source: str | Path, device: str | None) -> Classifier:
    """EmolabError where nothing was trained to classify. The tokenizer's `model_max_length` is what the model reads."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = str(user_path(source))
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(place)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                place, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # hub client, safetensors and tokenizers raise many kinds
        raise EmolabError(
            f"no classifier {str(source)!r}: neither a directory with a Hugging Face model and its tokenizer, nor a "
            f"hub id reachable from here ({str(error).splitlines()[0]})"
        ) from error
    if info["missing_keys"]:  # transformers would draw them at random
        lacking = min(info["missing_keys"])
        raise EmolabError(f"{source} lacks {lacking}: it was not trained to classify; take a sequence classifier")
    if model.config.num_labels < 2:
        raise EmolabError(f"{source} has one output: it was not trained to classify; take a sequence classifier")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id  # decoders find a row's last token by it
    tokenizer.padding_side = "right"
    # RoBERTa and its kin lose two positions to padding.
    positions = (getattr(model.config, "max_position_embeddings", None) or 10**9) - 2
    tokenizer.model_max_length = min(MAX_TOKENS, tokenizer.model_max_length, positions)
    model.config.use_cache = False  # of encoder-decoders, which read a text once
    return Classifier(
        str(source), tokenizer, model.float().eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    )
