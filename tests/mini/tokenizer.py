"""Word-level tokenizer of the bundled model: every word of the grammar is one token, any other word is spelled out.

Plain English text survives encoding and decoding unchanged (up to spaces), and gives the same tokens with or without a
leading space, so that a text means the same everywhere. Characters outside ASCII become <unk>.

>>> tok = build()
>>> tok.decode(tok("The park is wonderful!", add_special_tokens=False).input_ids)
'The park is wonderful!'
"""

from __future__ import annotations

import random
import re
import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.mini.corpus import example, frames, lexicon, topics

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_WORD = r"▁?[A-Za-z][A-Za-z'-]*|▁?\d|▁?[^A-Za-z\d▁]|▁"


def words() -> list[str]:
    """Every piece that the grammar can write, most common first: words carry the space before them as "▁"."""
    rng, seen = random.Random(0), {}
    listed = [x for slots in lexicon().values() for fillers in slots.values() for x in fillers]
    listed += [x for group in frames().values() for items in group.values() for x in items]
    listed += [x for t in topics() for x in (t.name, *t.parts, *t.acts)]
    listed = re.findall(r"[A-Za-z'-]+", re.sub(r"\{.*?\}", " ", " ".join(listed).replace("|", " ")))
    texts = [" ".join(filter(None, (e.system, e.user, e.answer))) for e in (example(rng) for _ in range(30_000))]
    for text in [*texts, " ".join(w for w in listed if not w.isupper())]:
        for piece in re.findall(_WORD, "▁" + text.replace(" ", "▁")):
            seen[piece] = seen.get(piece, 0) + 1
    return sorted(seen, key=lambda w: (-seen[w], w))


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, made from the grammar alone."""
    pieces = [w for w in words() if w != "▁"]
    letters = [c for c in string.ascii_letters + string.digits + "'-" + string.punctuation]
    spelled = [f"##{c}" for c in letters] + [f"▁{c}" for c in letters] + letters
    vocab = {w: i for i, w in enumerate(dict.fromkeys([*SPECIAL, *pieces, "▁", *spelled]))}
    tok = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", continuing_subword_prefix="##"))
    tok.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always", split=False), pre_tokenizers.Split(Regex(_WORD), "isolated")]
    )
    tok.decoder = decoders.Sequence(
        [decoders.Replace("##", ""), decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:], padding_side="left", clean_up_tokenization_spaces=False,
        model_max_length=512,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast
