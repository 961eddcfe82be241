"""Ways to damage a file, and what may come of reading it: the right thing or one clear FileError, quickly."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from emolab.base.errors import EmolabError
from tests.refusing import readable

few = settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
SECONDS, MEGABYTES = 10.0, 400

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """The file cut, with bytes changed, lost, doubled or put in; or anything at all."""
    kind = draw(st.sampled_from(("cut", "flip", "flip", "drop", "double", "insert", "noise")))
    at = draw(st.integers(0, max(0, len(whole) - 1)))
    if kind == "cut":
        return whole[:at]
    if kind == "flip":
        data = bytearray(whole)
        for place in draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6)):
            data[place] ^= draw(st.integers(1, 255))
        return bytes(data)
    if kind == "drop":
        return whole[:at] + whole[at + draw(st.integers(1, 64)) :]
    if kind == "double":
        return whole[:at] + whole[at : at + 64] + whole[at:]
    if kind == "insert":
        return whole[:at] + draw(st.binary(min_size=1, max_size=64)) + whole[at:]
    return draw(st.binary(max_size=200))


def outcome(read: Callable[[Path], Any], path: Path, content: bytes | None = None) -> Any:
    """What reading gives, or the error's message; fails for any other exception, for waste and for what was written."""
    if content is not None:
        path.write_bytes(content)
    before, start, size = _files(path.parent), time.monotonic(), _peak()
    try:
        found = read(path)
    except EmolabError as error:
        found = str(error)
        readable(found.replace(str(path), "/").replace(str(path.parent), "/"))
    assert time.monotonic() - start < SECONDS and _peak() - size < MEGABYTES
    assert _files(path.parent) == before
    return found


def _files(folder: Path) -> dict[str, int]:
    return {str(f.relative_to(folder)): f.lstat().st_mtime_ns for f in folder.rglob("*")}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
