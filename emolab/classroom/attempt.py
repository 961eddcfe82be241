"""Trying a student's function, and saying in words what is wrong with its answer."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from emolab.base.errors import EmolabError


class Wrong(EmolabError):
    """A wrong answer: what was expected, and which mistake it looks like. A notebook shows no stack trace."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for this
        return str(self).splitlines()


class Unfinished(NotImplementedError):
    """An exercise that still holds `raise NotImplementedError`."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


def attempt(name: str, function: Callable, *args: Any) -> Any:
    """What the function returns for these arguments; Wrong where it stops, returns nothing or changes an argument."""
    if not callable(function):
        raise Wrong(f"{name}: the check needs the function itself, without brackets: classroom.check_{name}({name})")
    before = deepcopy([x for x in args if isinstance(x, Tensor | pd.DataFrame)])
    try:
        got = function(*args)
    except NotImplementedError:
        raise Unfinished(
            f"{name}: nothing here yet. Replace `raise NotImplementedError` by your code, run that cell, then this one."
        ) from None
    except Wrong:
        raise
    except Exception as error:  # whatever a student's code may raise
        called = ", ".join(map(_described, args))
        raise Wrong(
            f"{name}: your function stopped{_line(function, error)} with {type(error).__name__}: {error}\n"
            f"It was called with {called}."
        ) from error
    if got is None:
        raise Wrong(f"{name}: your function returns nothing. Is the last line a `return`?")
    after = [x for x in args if isinstance(x, Tensor | pd.DataFrame)]
    if not all(map(_unchanged, before, after)):
        raise Wrong(
            f"{name}: your function changed what it was given. Make a new tensor (x = x - y) instead of writing into "
            "the old one (x -= y): whoever called you still needs it."
        )
    return got


def tensor(name: str, got: Any, what: str = "result") -> Tensor:
    """The answer as float64, whether it came as a tensor, an array or a list."""
    try:
        return torch.as_tensor(got).detach().double()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{name}: the {what} is a {type(got).__name__}; expected a tensor.") from None


def same(
    name: str, got: Any, expected: Tensor, axes: str, mistakes: Mapping[str, Any], *, what: str = "result",
    within: float = 1e-4,
) -> None:  # fmt: skip
    """Nothing where the answer is the expected tensor [axes]; else Wrong, with the first mistake that it looks like.

    >>> same("cosine", dots, cosines, "emotion emotion", {"these are dot products": dots})      # doctest: +SKIP
    Traceback (most recent call last):
    ...
    emolab.classroom.attempt.Wrong: cosine: these are dot products
    """
    got, expected = tensor(name, got, what), expected.double()
    if _close(got, expected, within):
        return
    shape = f"Expected shape {tuple(expected.shape)} = [{axes.replace(' ', ', ')}]"
    for why, value in mistakes.items():
        if _close(got, torch.as_tensor(value).double(), within):
            shapes = "" if got.shape == expected.shape else f"\n{shape}, got {tuple(got.shape)}."
            raise Wrong(f"{name}: {why}{shapes}")
    if got.shape != expected.shape:
        raise Wrong(f"{name}: the {what} has another shape than it should.\n{shape}, got {tuple(got.shape)}.")
    if got.isnan().any():
        raise Wrong(f"{name}: the {what} holds NaN, which comes from a division by zero. {shape}, without NaN.")
    place = int((got - expected).abs().argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(place), expected.shape)]
    where = f" at {index}" if index else ""
    raise Wrong(
        f"{name}: the shape is right, the numbers are not: {what}{where} should be {expected.flatten()[place]:.4g}, "
        f"and is {got.flatten()[place]:.4g}. Work the toy case out by hand, or open a hint."
    )


def done(name: str, lesson: str) -> None:
    print(f"{name}: right. {lesson}")


def _unchanged(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, Tensor) else x.equals(y)


def _close(a: Tensor, b: Tensor, within: float) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=within, atol=within)


def _described(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)}"
    if isinstance(x, pd.DataFrame):
        return f"a table of {len(x)} rows with columns {', '.join(x.columns)}"
    return repr(x) if isinstance(x, str | int | float) else f"a {type(x).__name__}"


def _line(function: Callable, error: Exception) -> str:
    """Where in the student's own cell it happened."""
    code = getattr(function, "__code__", None)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    return f" in line {lines[-1]} of its cell" if lines else ""
