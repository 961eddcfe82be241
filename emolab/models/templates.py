"""Chat templates: the one place where turns become a string, the same on every day, with reasoning closed.

>>> from emolab.models.templates import rendered
>>> rendered(model.tokenizer, [{"role": "user", "content": "Tell me about the park."}])
'<|im_start|>system...'
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Sequence
from datetime import date
from typing import Any

from emolab.base.errors import EmolabError, shown

# The date that templates with a date print, Llama 3.1's own choice where it is not told another.
_DATE, _NOW = date(2024, 7, 26), re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
# Ends of prompts behind which a model reasons (R1 and its kin, gpt-oss), and what opens the answer instead.
_REASONS = {"<think>": "\n\n</think>\n\n", "<|start|>assistant": "<|channel|>final<|message|>"}


def one_turn(tokenizer: Any, system: str, user: str) -> str:
    """The prompt of one turn. A template that refuses to begin without a system turn gets an empty one."""
    asked = [_turn("user", user)]
    try:
        return rendered(tokenizer, [_turn("system", system), *asked] if system else asked)
    except Exception as error:  # templates refuse with whatever error their author chose
        if not system:
            with contextlib.suppress(Exception):
                return rendered(tokenizer, [_turn("system", ""), *asked])
        raise EmolabError(
            f"the chat template of {tokenizer.name_or_path!r} cannot be used ({shown(str(error))[1:-1]}); give another "
            "one: load_model(..., chat_template=...)"
        ) from error


def rendered(tokenizer: Any, messages: Sequence[dict[str, str]], *, prompt: bool = True) -> str:
    """Turns, each {"role": ..., "content": ...}, as the model reads them; prompt: open for the assistant's answer."""
    # Templates that print today's date would give other prompts, and other vectors, tomorrow.
    template = _NOW.sub(lambda call: repr(_DATE.strftime(call[2])), tokenizer.get_chat_template())
    # enable_thinking is read by the templates of reasoning models and ignored by all others: the answer itself is the
    # response.
    return tokenizer.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
    )


def past_reasoning(prompts: list[str]) -> list[str]:
    """The prompts; where their template leaves the model to reason first whatever it is told, with that part closed.

    >>> past_reasoning(["<|Assistant|><think>\\n"])    # doctest: +SKIP
    ['<|Assistant|><think>\\n\\n</think>\\n\\n']

    It warns where it does so.
    """
    for end, closed in _REASONS.items():
        if prompts and all(prompt.rstrip().endswith(end) for prompt in prompts):
            warnings.warn(
                f"this model's template ends in {end!r}, so that it reasons before it answers, and cannot be told not "
                f"to; its prompts are ended with {closed!r}, since vectors and judges are to read the answer itself",
                stacklevel=3,
            )
            return [prompt.rstrip() + closed for prompt in prompts]
    return prompts


def turn_end(tokenizer: Any) -> int | None:
    """The token that the chat template puts right behind an assistant's turn; None where it puts a text or nothing.

    >>> model.tokenizer.decode(turn_end(model.tokenizer))
    '<|im_end|>'
    """
    answer = "What the assistant says."
    try:
        text = rendered(tokenizer, [_turn("user", "What?"), _turn("assistant", answer)], prompt=False)
    except Exception:  # no template, or one that cannot be used, which `render_prompts` says
        return None
    if answer not in text:
        return None
    behind = text.rpartition(answer)[2].lstrip()
    ids = tokenizer(behind, add_special_tokens=False).input_ids if behind else []
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def has_system_role(tokenizer: Any, system: str) -> bool:
    """Whether a system turn adds to the prompt and takes nothing from it."""
    plain = one_turn(tokenizer, "", "query")
    try:
        whole = one_turn(tokenizer, system, "query")
    except EmolabError:
        return False
    same = len(os.path.commonprefix([plain, whole]))
    return system in whole and whole.endswith(plain[same:])


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}
