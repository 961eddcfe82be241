"""Chat templates: the one place where turns become a prompt, checked, the same on every day, with reasoning closed."""

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
# What stands for a question and for an answer where a template is looked at: no template writes these by itself.
_QUESTION, _ANSWER = "What does the Question ask?", "What the Answer says."
SAMPLE = [
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": "And what then?"},
]
# What opens a block of reasoning, by whichever name: <think>, [THINK], <|begin_of_thought|>, <seed:think> ...
_NAMES = "think|thinking|thought|thoughts|reason|reasoning|analysis|scratchpad|reflection"
_OPENING = rf"(?:<\|?|\[|◁)(?:\w+[:_])*(?:{_NAMES})(?:\|?>|\]|▷)"
_REASONS = re.compile(rf"{_OPENING}\s*$", re.IGNORECASE)
_REASONED = re.compile(rf"\s*(?:{_OPENING}|<\|channel\|>\s*analysis)", re.IGNORECASE)
# gpt-oss: the model chooses a channel, of which one is reasoning.
_CHANNEL, _FINAL = "<|start|>assistant", "<|channel|>final<|message|>"


def chat_prompts(tokenizer: Any, system: str, turns: Sequence[str]) -> list[str]:
    """One prompt per turn of a user, behind the same system turn where `system` is not empty, open for the answer.

    Each holds its turn once and whole (but for white space around it), for the template is looked at with a question
    that can be found again. A template that wants a system turn gets an empty one, one that wants parts gets parts.
    Where it leaves a model to reason first, the block is closed, with a warning; where it takes no notice of being
    asked to open the assistant's turn, it is opened as in the middle of a conversation. Raises EmolabError, in one
    line, for a template that raises, or that drops, doubles, cuts or rewrites what a user says.
    """
    plain = one_turn(tokenizer, system, _QUESTION)
    if plain.count(_QUESTION) != 1:
        raise _unusable(tokenizer, f"it puts a user's turn {plain.count(_QUESTION)} times into the prompt")
    before, after = plain.split(_QUESTION)
    opened = past_reasoning(plain)
    if opened == plain:
        opened += _opening(tokenizer)
    prompts = []
    for text in turns:
        prompt = one_turn(tokenizer, system, text)
        inner = prompt[len(before) : len(prompt) - len(after)]
        if prompt != before + inner + after or inner.strip() != text.strip():
            raise _unusable(tokenizer, f"it does not hold the turn {shown(text)} as it is, but {shown(inner)}")
        prompts.append(opened.replace(_QUESTION, inner))
    return prompts


def conversation(tokenizer: Any, turns: Sequence[Sequence[str]], query: str) -> str:
    """The prompt of a query behind earlier (query, answer) turns; EmolabError where one of these gets lost."""
    messages = [_turn(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    messages.append(_turn("user", query))
    try:
        prompt = rendered(tokenizer, messages)
    except Exception as error:
        raise _unusable(tokenizer, shown(str(error))[1:-1]) from error
    lost = next((said["content"] for said in messages if said["content"].strip() not in prompt), None)
    if lost is not None:
        raise _unusable(tokenizer, f"it does not hold the turn {shown(lost)}")
    return past_reasoning(prompt)


def one_turn(tokenizer: Any, system: str, user: str) -> str:
    """What the template makes of one turn. One that refuses to begin without a system turn gets an empty one."""
    asked = [_turn("user", user)]
    try:
        return rendered(tokenizer, [_turn("system", system), *asked] if system else asked)
    except Exception as error:
        if not system:
            with contextlib.suppress(Exception):
                return rendered(tokenizer, [_turn("system", ""), *asked])
        raise _unusable(tokenizer, shown(str(error))[1:-1]) from error


def rendered(tokenizer: Any, messages: Sequence[dict[str, str]], *, prompt: bool = True) -> str:
    """Turns, each {"role": ..., "content": ...}, as the model reads them; prompt: open for the assistant's answer.

    Contents go in as texts; where these raise or get lost, as a list of parts, which templates of models that also see
    may want.
    """
    parts = [{**said, "content": [{"type": "text", "text": said["content"]}]} for said in messages]
    outcomes: list[str | Exception] = []
    for given in (list(messages), parts):
        try:
            outcomes.append(_applied(tokenizer, given, prompt))
        except Exception as error:  # templates refuse with whatever error their author chose
            outcomes.append(error)
        if isinstance(outcomes[-1], str) and all(said["content"].strip() in outcomes[-1] for said in messages):
            return outcomes[-1]
    if isinstance(outcomes[0], Exception):
        raise outcomes[0]
    return outcomes[0]


def _applied(tokenizer: Any, messages: list[dict[str, Any]], prompt: bool) -> str:
    # Templates that print today's date would give other prompts, and other vectors, tomorrow.
    template = _NOW.sub(lambda call: repr(_DATE.strftime(call[2])), tokenizer.get_chat_template())
    # enable_thinking is read by the templates of reasoning models and ignored by all others: the answer itself is the
    # response.
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
    )


def has_system_role(tokenizer: Any, system: str) -> bool:
    """Whether a system turn adds itself to the prompt once, and takes nothing from it."""
    plain = one_turn(tokenizer, "", _QUESTION)
    try:
        whole = one_turn(tokenizer, system, _QUESTION)
    except EmolabError:
        return False
    same = len(os.path.commonprefix([plain, whole]))
    return whole.count(system) == 1 and whole.endswith(plain[same:])


def turn_ends(tokenizer: Any) -> list[int]:
    """The tokens that the chat template puts right behind an assistant's turn, the last one or one before a user's.

    >>> model.tokenizer.decode(turn_ends(model.tokenizer))
    '<|im_end|>'

    Empty where it puts a text there, or nothing.
    """
    ends: list[int] = []
    for messages in (SAMPLE[:2], SAMPLE):
        try:
            text = rendered(tokenizer, messages, prompt=False)
        except Exception:  # no template, or one that cannot be used, which `chat_prompts` says
            continue
        behind = text.rpartition(_ANSWER)[2].lstrip() if _ANSWER in text else ""
        ids = tokenizer(behind, add_special_tokens=False).input_ids if behind else []
        ends += [i for i in ids[:1] if i in tokenizer.added_tokens_decoder and i not in ends]
    return ends


def ends_in_reasoning(prompt: str) -> bool:
    """Whether a prompt leaves a block of reasoning open."""
    return bool(_REASONS.search(prompt))


def begins_with_reasoning(answer: str) -> bool:
    """Whether an answer, its control tokens shown, opens a block of reasoning.

    >>> begins_with_reasoning("<think>The user asks"), begins_with_reasoning("I think so.")
    (True, False)
    """
    return bool(_REASONED.match(answer))


def past_reasoning(prompt: str) -> str:
    """The prompt; where its template leaves the model to reason first whatever it is told, with that part closed.

    >>> past_reasoning("<|Assistant|><think>\\n")    # doctest: +SKIP
    '<|Assistant|><think>\\n\\n</think>\\n\\n'

    It warns where it does so.
    """
    opening = _REASONS.search(prompt)
    if opening:
        end = opening[0].strip()
        closed = f"\n\n{_closing(end)}\n\n"
    elif prompt.rstrip().endswith(_CHANNEL):
        end, closed = _CHANNEL, _FINAL
    else:
        return prompt
    warnings.warn(
        f"this model's template ends in {end!r}, so that it reasons before it answers, and cannot be told not to; its "
        f"prompts are ended with {closed!r}, since vectors and judges are to read the answer itself",
        stacklevel=4,
    )
    return prompt.rstrip() + closed


def _closing(opening: str) -> str:
    """</think> for <think>, [/THINK] for [THINK], <|end_of_thought|> for <|begin_of_thought|>."""
    named = re.sub("begin|start", "end", opening)
    return named if named != opening else re.sub(r"^(<\|?|\[|◁)", r"\1/", opening)


def _opening(tokenizer: Any) -> str:
    """What a conversation puts between the prompt of a question and the answer, where the prompt stops before it."""
    prompt = one_turn(tokenizer, "", _QUESTION)
    try:
        before = rendered(tokenizer, SAMPLE[:2], prompt=False).partition(_ANSWER)[0]
    except Exception:  # a template that takes one turn alone
        return ""
    missing = before[len(prompt) :] if before.startswith(prompt) else ""
    return missing if missing.strip() else ""  # white space before an answer is the answer's to write


def _unusable(tokenizer: Any, cause: str) -> EmolabError:
    return EmolabError(
        f"the chat template of {tokenizer.name_or_path!r} cannot be used ({cause}); give another one: "
        "load_model(..., chat_template=...)"
    )


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}
