"""Files that are either whole or absent, with their provenance in the header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emolab import __version__
from emolab.errors import EmolabError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from emolab.models import Model


def digest(parts: Sequence[str]) -> str:
    """sha256 of a sequence of texts, 16 hex digits; where one text ends and the next starts matters."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]


def provenance(model: Model) -> dict:
    """What tells whether something measured on `model` fits another model: its identity, shape, precision, versions."""
    from importlib.metadata import version

    return {
        "model": model.name,
        "source": model.source,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "compat": False,  # TransformerLens' compatibility mode would change the activations of LayerNorm models
        "tl_version": version("transformer-lens"),
        "transformers_version": version("transformers"),
        "torch_version": version("torch"),
        "emolab_version": __version__,
    }


def versions() -> str:
    """What the first cell of a notebook prints: the versions that its results depend on.

    >>> print(emolab.versions())
    emolab 0.1.0 | transformer-lens 4.3.0 | torch 2.13.0 | transformers 5.23.0
    """
    from importlib.metadata import version

    others = (f"{name} {version(name).split('+')[0]}" for name in ("transformer-lens", "torch", "transformers"))
    return " | ".join((f"emolab {__version__}", *others))


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: str | Path, kind: str, tensors: dict[str, Tensor], meta: dict) -> None:
    """One safetensors file, atomically. Header values are plain text; those named in `json` are JSON."""
    from safetensors.torch import save_file

    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta.items()}
    coded = ",".join(key for key, value in meta.items() if not isinstance(value, str))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(tensors, str(temporary), metadata={**text, "format": kind, "json": coded})


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and provenance of a file that `write_tensors` wrote; EmolabError where it is not one of this kind."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise EmolabError(f"no file {str(path)!r}; expected a safetensors file written by emolab")
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        found = meta.pop("format", "none")
        if found == kind:
            coded = [key for key in meta.pop("json", "").split(",") if key]
            return tensors, {**meta, **{key: json.loads(meta[key]) for key in coded}}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise EmolabError(f"{path} is damaged or no safetensors file ({error}); save it again") from error
    raise EmolabError(f"{path} has format {found!r}, expected {kind!r}; it was not written by this part of emolab")


def write_json(path: str | Path, data: Any) -> None:
    """One JSON file, atomically; NaN is refused, since JSON knows none."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """One parquet file, atomically."""
    with atomic(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_table(table: pd.DataFrame, path: str | Path | None, settings: dict) -> pd.DataFrame:
    """One parquet file, atomically, with the settings that made it; without a path only the settings are noted."""
    table.attrs["emolab"] = settings  # pandas keeps attrs in the parquet schema
    if path is not None:
        write_parquet(Path(path), table)
    return table


def read_table(path: str | Path | None, settings: dict) -> pd.DataFrame | None:
    """What `write_table` wrote, None where there is nothing; EmolabError where it was made with other settings."""
    if path is None or not Path(path).exists():
        return None
    import pandas as pd

    try:
        table = pd.read_parquet(path)
        stored = table.attrs["emolab"]
    except Exception as error:  # pyarrow raises a zoo of its own
        raise EmolabError(f"{path} is damaged or was not written by emolab; move it away") from error
    differing = [key for key in {**stored, **settings} if stored.get(key) != settings.get(key)]
    if differing:
        told = "; ".join(f"{key}: there {stored.get(key)!r}, here {settings.get(key)!r}" for key in differing)
        raise EmolabError(f"{path} was made with other settings ({told}); choose another out folder")
    return table
