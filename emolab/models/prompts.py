"""From queries to batches: prompt wording, chat templates, BOS, tokenising with left padding, batch planning.

Model input has one path everywhere: `render_prompts` makes complete strings (chat template and BOS included), `encode`
turns them into left-padded ids with a mask. Strings are never handed to TransformerLens, which would change the
tokenizer and add a second BOS.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from emolab.base.errors import EmolabError, need_model, need_number, need_texts, shown
from emolab.base.labels import NEUTRAL
from emolab.models.memory import room
from emolab.models.model import Model
from emolab.models.templates import chat_prompts, conversation, has_system_role

_INTENSITIES = {None: "", "a little": "a little ", "great": "great "}
_WORDS = "\u2060"  # invisible; in a prompt, before a control token that a user wrote, which is words there


def instruction(emotion: str, intensity: str | None = None) -> str:
    """The wording of the instruction, in this one place. intensity: None, "a little" or "great".

    >>> instruction("joy"), instruction("joy", "a little")
    ('Answer with joy.', 'Answer with a little joy.')
    """
    if intensity not in _INTENSITIES:
        raise EmolabError(f"unknown intensity {intensity!r}; expected None, 'a little' or 'great'")
    return f"Answer with {_INTENSITIES[intensity]}{emotion}."


def render_prompts(
    model: Model,
    queries: list[str],
    condition: str = NEUTRAL,
    *,
    templates: dict[str, str] | None = None,
    intensity: str | None = None,
) -> list[str]:
    """Complete prompt strings, with BOS exactly once where the model uses one: encode them without special tokens.

    >>> print(render_prompts(model, ["Tell me about the park."], "joy")[0])
    <|im_start|>system
    You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
    <|im_start|>user
    Answer with joy. Tell me about the park.<|im_end|>
    <|im_start|>assistant
    <BLANKLINE>

    With a chat template, `neutral` is the query as the user's turn and an emotion adds its `instruction` as the
    system's turn, if that leaves the neutral prompt whole. Else the instruction opens the user's turn: where the
    template has no system role (Gemma 2), and where it drops a system prompt of its own as soon as another is given
    (Qwen 2.5, Granite), which would make the vectors hold the loss of that prompt beside the emotion. Dates that a
    template prints are fixed; what a user wrote stays words, also where it spells a control token. Without chat
    template: "{query}\\n" and "Answer with joy. {query}\\n".
    templates {condition: text with "{query}"} replaces that wording: it is the user's turn or, without chat template,
    the whole prompt. Raises EmolabError for a condition that templates lacks, a template without "{query}", an unknown
    intensity, a chat template that raises, or that does not hold the query as it is.
    """
    need_model(model)
    queries = [as_words(model, query) for query in need_texts("queries", queries)]
    if not isinstance(condition, str) or not condition.strip():
        raise EmolabError(f"the emotion is {shown(condition)}; expected its name, such as 'joy'")
    if templates is not None:
        if not hasattr(templates, "get"):
            raise EmolabError(f'templates are {shown(templates)}; expected {{condition: text with "{{query}}"}}')
        text = templates.get(condition)
        if not isinstance(text, str) or "{query}" not in text:
            raise EmolabError(f'templates[{condition!r}] is {text!r}; expected a text with "{{query}}" in it')
        system, turns = "", [text.replace("{query}", query) for query in queries]
    elif condition == NEUTRAL:
        system, turns = "", queries
    else:
        system, turns = as_words(model, instruction(condition, intensity)), queries
    if system and not (model.tokenizer.chat_template and has_system_role(model.tokenizer, system)):
        system, turns = "", [f"{system} {query}" for query in queries]
    if model.tokenizer.chat_template:
        prompts = chat_prompts(model.tokenizer, system, turns)
    else:
        prompts = turns if templates is not None else [turn + "\n" for turn in turns]
    return [begun(model, prompt) for prompt in prompts]


def render_conversation(model: Model, turns: Sequence[Sequence[str]], query: str) -> str:
    """The complete prompt of a query behind earlier (query, answer) turns, as `render_prompts` makes that of one.

    >>> print(render_conversation(model, [("Hi", "Hello!")], "Tell me about the park."))       # doctest: +SKIP
    """
    said = [(as_words(model, asked), as_words(model, answer)) for asked, answer in turns]
    query = as_words(model, query)
    if not model.tokenizer.chat_template:
        return begun(model, "".join(f"{asked}\n{answer}\n\n" for asked, answer in said) + f"{query}\n")
    return begun(model, conversation(model.tokenizer, said, query))


def begun(model: Model, text: str) -> str:
    """The text with what this model's sequences begin with (BOS) before it, once; nothing where they do not.

    >>> begun(model, "The park")                                               # doctest: +SKIP
    '<s>The park'

    Raises EmolabError where the tokenizer does not read its own BOS as one token.
    """
    bos = model.tokenizer.bos_token or ""
    bare = text.removeprefix(model.start)
    while bos and bare.startswith(bos):
        bare = bare[len(bos) :]
    start = model.start or (bos if bare != text else "")
    if bos and bos in start and prompt_ids(model, [bos]) != [[model.tokenizer.bos_token_id]]:
        raise EmolabError(
            f"the tokenizer of {model.name!r} does not read its BOS {bos!r} as one token; give one that has it as a "
            "special token: load_model(..., tokenizer=...)"
        )
    return start + bare


def as_words(model: Model, text: str) -> str:
    """A text of a user for a prompt, in which no control token counts: one mark, which nobody sees, before each.

    >>> as_words(model, "What does <|im_end|> mean?") == "What does \u2060<|im_end|> mean?"
    True
    """
    return model.control_tokens.sub(rf"{_WORDS}\g<0>", text)


@dataclass
class Batch:
    """Left-padded ids; every row ends at the last column. response_mask marks the tokens of the text part."""

    input_ids: Int[Tensor, "row token"]
    attention_mask: Int[Tensor, "row token"]
    response_mask: Bool[Tensor, "row token"]
    prompt_len: int  # padded length of the prompts; with texts, of the longest prompt


def encode(
    model: Model,
    prompts: list[str],
    texts: list[str] | list[list[int]] | None = None,
    *,
    ends: Sequence[int | None] | None = None,
) -> Batch:
    """Prompts, or prompts followed by texts, as one batch on the model's device.

    >>> batch = encode(model, ["<|im_start|>The park"], ["was quiet."])
    >>> batch.input_ids.shape, batch.response_mask.sum()
    (torch.Size([1, 6]), tensor(3))

    Prompt and text are tokenised apart and joined as ids, so that what is counted as response is exactly the text's own
    tokens, and a control token that is spelled out in a text is words; a text may also be given as its ids. Prompts are
    complete (see `render_prompts`); an empty one stands for what the tokenizer by itself begins with (BOS). ends: a
    token to put behind each text, None for none. Raises EmolabError for a row without any token, for lists of different
    length, and for rows longer than the model's context.
    """
    tokenizer = model.tokenizer
    texts = [""] * len(prompts) if texts is None else texts
    ends = [None] * len(prompts) if ends is None else ends
    if not prompts or not len(prompts) == len(texts) == len(ends):
        raise EmolabError(f"{len(prompts)} prompts and {len(texts)} texts; expected as many of both, and at least one")
    before = prompt_ids(model, prompts)
    said = [x if isinstance(x, list) else text_ids(model, [x])[0] for x in texts]
    counted = [ids if end is None else [*ids, end] for ids, end in zip(said, ends, strict=True)]
    rows = [prompt + text for prompt, text in zip(before, counted, strict=True)]
    if [] in rows:
        raise EmolabError(f"row {rows.index([])} has no token; give it a prompt or a text")
    size = max(map(len, rows))
    check_context(model, size)
    padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.full((len(rows), size), padding, device="cpu")
    mask = torch.zeros_like(ids)
    response = torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, text) in enumerate(zip(rows, counted, strict=True)):
        ids[i, size - len(row) :] = torch.tensor(row, device="cpu")
        mask[i, size - len(row) :] = 1
        response[i, size - len(text) :] = True
    ids, mask, response = (tensor.to(model.device) for tensor in (ids, mask, response))
    return Batch(ids, mask, response, max(map(len, before)))


def prompt_ids(model: Model, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of complete prompts; an empty one stands for what the model's sequences begin with.

    >>> prompt_ids(model, ["<|im_start|>user"])
    [[1, 4093]]
    """
    marked = [_WORDS in prompt for prompt in prompts]
    rows = iter(_ids(model, [prompt for prompt, mark in zip(prompts, marked, strict=True) if prompt and not mark]))
    start = list(model.start_ids)
    return [
        start if not prompt else _with_words(model, prompt) if mark else next(rows)
        for prompt, mark in zip(prompts, marked, strict=True)
    ]


def _with_words(model: Model, prompt: str) -> list[int]:
    """The ids of a prompt in which a user wrote control tokens: between those that are meant, all is text."""
    control = model.control_tokens.pattern
    pieces = re.split(f"(?<!{_WORDS})({control})", prompt)  # every second one is a control token
    words = text_ids(model, [re.sub(f"{_WORDS}({control})", r"\1", piece) for piece in pieces[::2]])
    meant = [[model.tokenizer.convert_tokens_to_ids(piece)] for piece in pieces[1::2]]
    return [i for pair in itertools.zip_longest(words, meant, fillvalue=[]) for ids in pair for i in ids]


def text_ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts that somebody wrote: a control token that is spelled out there is words.

    >>> text_ids(model, ["quiet<|im_end|>"])
    [[43327, 44, 108, 306, 79, 486, 108, 46]]
    """
    return _ids(model, texts, split=True)


def _ids(model: Model, texts: Sequence[str], *, split: bool = False) -> list[list[int]]:
    if not texts:
        return []
    encoded = model.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=split)
    return [list(ids) for ids in encoded.input_ids]


def check_context(model: Model, size: int) -> None:
    """Raise EmolabError where a sequence of `size` tokens does not fit."""
    if model.n_ctx is not None and size > model.n_ctx:
        raise EmolabError(
            f"a sequence of {size} tokens does not fit {model.name!r} ({model.n_ctx}); "
            "shorten the text or max_new_tokens"
        )


def plan_batches(
    model: Model, lengths: list[int], batch_size: int | None = None, *, logits: bool = False, cached: bool = False
) -> list[list[int]]:
    """Row numbers in batches of similar length, shortest first: the one place where the default batch size is set.

    Default on CPU: as many rows as fit 2,048 tokens, which stay in its caches, or with cached=True, where tokens are
    written one by one, 16,384; elsewhere 65,536. At most 128 rows on CPU and 512 elsewhere, and fewer where so many
    tokens would not fit half of the free memory (`models.memory.room`; never where they need under 2 GiB). logits=True
    (where every token's logits are kept) also holds these under 2**28 numbers, 1 GiB in float32. The same batches for
    the same lengths, while about as much memory is free; greedy texts do not depend on them.
    """
    if batch_size is not None:
        need_number("batch_size", batch_size, 1, whole=True)
    if model.device.type == "cpu":
        max_tokens, max_rows = 16_384 if cached else 2048, 128
    else:
        max_tokens, max_rows = 65_536, 512
    if logits:
        max_tokens = min(max_tokens, 2**28 // model.bridge.cfg.d_vocab)
    if batch_size is None and lengths:
        max_tokens = int(min(max_tokens, room(model, max(lengths), logits=logits)))
    plan: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):  # so the newest is the longest of its batch
        size = batch_size or max(1, min(max_rows, max_tokens // max(1, lengths[i])))
        if not plan or len(plan[-1]) >= size:
            plan.append([])
        plan[-1].append(i)
    return plan
