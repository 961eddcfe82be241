"""Who says which token of a prompt: found by what the chat template puts before the turns of each role.

>>> from emolab.models.prompts import prompt_ids, render_conversation
>>> (ids,) = prompt_ids(model, [render_conversation(model, [("Hi!", "Hello.")], "And you?")])
>>> (roles,) = token_roles(model, [ids])
>>> model.tokenizer.decode([i for i, role in zip(ids, roles) if role == "user"])
'Hi!And you?'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile

from emolab.base.errors import EmolabError
from emolab.models.model import Model
from emolab.models.templates import SAMPLE, rendered

ROLES = ("user", "assistant")


def token_roles(model: Model, prompts: Sequence[Sequence[int]]) -> list[list[str | None]]:
    """Who says each token of each prompt: "user", "assistant", or None for the template's own and the system's.

    Raises EmolabError for a model without a chat template, with one that opens no turns, and without a fast tokenizer.
    """
    openings = _openings(model)
    return [_roles(ids, openings) for ids in prompts]


def _roles(ids: Sequence[int], openings: Mapping[str, list[int]]) -> list[str | None]:
    roles: list[str | None] = []
    speaks: str | None = None
    while len(roles) < len(ids):
        here = len(roles)
        opened = [role for role in ROLES if list(ids[here : here + len(openings[role])]) == openings[role]]
        if opened:
            speaks = max(opened, key=lambda role: len(openings[role]))
            roles += [None] * len(openings[speaks])
        else:
            roles.append(speaks)
    return roles


def _openings(model: Model) -> dict[str, list[int]]:
    """The tokens that stand before every turn of a role: what a first and a later one have in common."""
    tokenizer = model.tokenizer
    if not tokenizer.chat_template or not tokenizer.is_fast:
        raise EmolabError(
            f"{model.name!r} has no chat template, or no fast tokenizer, and roles are told by both; steer other "
            'positions, such as "prompt"'
        )
    text = rendered(tokenizer, SAMPLE)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = list(zip(encoded.input_ids, encoded.offset_mapping, strict=True))
    starts = [text.find(turn["content"]) for turn in SAMPLE]
    ends = [0, *(start + len(turn["content"]) for start, turn in zip(starts, SAMPLE, strict=True))]
    between = [
        [i for i, (begin, end) in tokens if low <= begin and end <= high]
        for low, high in zip(ends, [*starts, len(text)], strict=True)
    ]
    openings = {"user": _common_end(between[0], between[2]), "assistant": _common_end(between[1], between[3])}
    if min(starts) < 0 or not all(openings.values()):
        raise EmolabError(
            f"the chat template of {model.name!r} does not tell by its tokens who speaks; steer other positions, such "
            'as "prompt"'
        )
    return openings


def _common_end(first: list[int], later: list[int]) -> list[int]:
    pairs = zip(reversed(first), reversed(later), strict=False)
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)][::-1]
