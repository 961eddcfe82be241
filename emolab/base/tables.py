"""What results carry beside their numbers: how they were made, for a figure's footer; and the layers asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emolab.base.errors import EmolabError


def origin(source: Any) -> dict[str, str | None]:
    """Which model something was made with: its name, revision and fingerprint, None where they are not known.

    source: a Model; what carries provenance in `meta` (vectors, means), or that itself; or a model's name.

    >>> origin(vectors)["name"], origin("my model")
    ('smollm2', {'name': 'my model', 'revision': None, 'fingerprint': None})
    """
    if isinstance(source, pd.DataFrame):
        raise TypeError("a table carries no provenance of its own; `about` gives what it says of itself")
    if isinstance(source, str):
        meta: Mapping[str, Any] = {"name": source}
    elif isinstance(source, Mapping):
        meta = source
    else:
        meta = vars(source).get("meta", vars(source))
    known = {"name": meta.get("name") or meta.get("model")}
    known |= {key: meta.get(key) for key in ("revision", "fingerprint")}
    return {key: None if value is None else str(value) for key, value in known.items()}


def noted(
    table: pd.DataFrame, source: Any, *, n: str | None = None, seed: int | None = None, params: dict | None = None
) -> pd.DataFrame:
    """The table with what a figure's footer says of it, in `attrs["about"]`.

    source: as for `origin`; or another table, whose n, seed and params hold where none are given here.
    """
    before = about(source) if isinstance(source, pd.DataFrame) else {"model": source}
    table.attrs["about"] = {
        "model": origin({} if before["model"] is None else before["model"]),
        "n": n or before.get("n"),
        "seed": before.get("seed") if seed is None else seed,
        "params": {**before.get("params", {}), **(params or {})},
    }
    return table


def about(result: Any) -> dict[str, Any]:
    """Who made a table, or vectors: {"model": ..., "n": ..., "seed": ..., "params": {...}}, for a figure's footer.

    >>> about(noted(table, vectors, n="12 queries"))["n"]
    '12 queries'

    Tables bring what `noted` wrote; sweeps and responses, the settings that they were written with.
    """
    if hasattr(result, "meta"):
        meta, n = result.meta, result.meta.get("n_responses")
    elif "about" in result.attrs:
        return {"model": None, "n": None, "seed": None, "params": {}} | result.attrs["about"]
    else:
        meta = result.attrs.get("emolab", {})
        n = f"{result['query_id'].nunique()} queries" if "query_id" in result else None
    return {"model": origin(meta) if meta.get("model") else None, "n": n, "seed": meta.get("seed"), "params": {}}


def some_layers(n_layers: int, layers: Sequence[int] | int | str | None, most: int = 6) -> list[int]:
    """The layers asked for, checked, negative ones from the end; "all"; None: at most `most`, evenly spread."""
    if isinstance(layers, str) and layers == "all":
        return list(range(n_layers))
    if layers is None:
        return sorted({round(x) for x in np.linspace(0, n_layers - 1, min(most, n_layers))})
    chosen = list(layers) if isinstance(layers, Sequence | np.ndarray) and not isinstance(layers, str) else [layers]
    wrong = [x for x in chosen if not isinstance(x, (int, np.integer)) or not -n_layers <= x < n_layers]
    if wrong or not chosen:
        raise EmolabError(f"no layer {wrong[0] if wrong else chosen!r}; there are layers 0 to {n_layers - 1}")
    return [int(layer) % n_layers for layer in chosen]


def span(layers: str | Sequence[int]) -> str:
    """Layers of a setting, or as in a sweep's table; three or more in a row by their ends.

    >>> span([15, 16, 17]), span("3,4"), span("late")
    ('15-17', '3,4', 'late')
    """
    numbers = layers.split(",") if isinstance(layers, str) else [str(int(layer)) for layer in layers]
    if len(numbers) > 2 and numbers == [str(n) for n in range(int(numbers[0]), int(numbers[-1]) + 1)]:
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(numbers)
