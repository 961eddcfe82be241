"""Files that are either whole or absent, with their provenance in the header."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from emolab import __version__
from emolab.base.errors import EmolabError, FileError, MismatchError, ResourceError, shown

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


def digest(parts: Iterable[str]) -> str:
    """sha256 of texts in their order, 16 hex digits; where one text ends and the next starts matters."""
    sha = hashlib.sha256(b"[")
    for number, part in enumerate(parts):  # as json.dumps of the list, never all of it in memory
        sha.update(f"{', ' if number else ''}{json.dumps(part)}".encode())
    sha.update(b"]")
    return sha.hexdigest()[:16]


def package_versions(*packages: str) -> dict[str, str | None]:
    """{"emolab": its version, package: its version, without the build (CPU, CUDA); None where it is not installed}.

    >>> list(package_versions("torch", "no-such-package").values())
    ['0.1.0', '2.13.0', None]
    """
    versions_of: dict[str, str | None] = {"emolab": __version__, **dict.fromkeys(packages)}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions_of[package] = metadata.version(package).split("+")[0]
    return versions_of


def versions() -> str:
    """What the first cell of a notebook prints: the versions that its results depend on.

    >>> print(emolab.versions())
    emolab 0.1.0 | transformer-lens 4.3.0 | torch 2.13.0 | transformers 5.23.0
    """
    installed = package_versions("transformer-lens", "torch", "transformers")
    return " | ".join(f"{package} {version}" for package, version in installed.items())


def user_path(path: str | Path) -> Path:
    """A path as people write it: "~" is their home folder, not a folder of that name; EmolabError for what is no path.

    >>> user_path("~/runs") == Path.home() / "runs"
    True
    """
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise EmolabError(f"{shown(path)} is no path; expected that of a file or folder")
    try:
        os.fsencode(path)
        return Path(path).expanduser()
    except UnicodeEncodeError as error:  # a bare surrogate, or any letter where the locale is C
        raise EmolabError(
            f"{ascii(str(path))} cannot be the name of a file here ({error.encoding}); set PYTHONUTF8=1"
        ) from None
    except RuntimeError as error:  # "~" of somebody whom this machine does not know
        raise EmolabError(f"{str(path)!r} names no home folder ({error}); write the path from its root on") from error


def file_name(label: str) -> str:
    """A label as a part of a file's name on any system, another one for each label.

    >>> file_name("a/b"), len(file_name("喜" * 100))
    ('a%2Fb', 117)
    """
    name = quote(label, safe=" ")
    return name if len(name) <= 120 else f"{name[:100]}-{digest([label])}"


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and vanishes when it does not.

    The new file is on disk before it takes the old one's name, so that not even a power cut leaves half a file. Raises
    ResourceError where it cannot be written; what was there before is then still there.
    """
    path = user_path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> EmolabError:
    """The error for a file or folder that cannot be written."""
    return ResourceError(
        f"cannot write {path} ({error.strerror or error}); what was written before is whole: make room there or choose "
        "another out folder, and run the same again"
    )


def write_tensors(path: str | Path, kind: str, tensors: dict[str, Tensor], meta: dict) -> None:
    """One safetensors file, atomically. Header values are plain text; those named in `json` are JSON."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in meta.items()}
    coded = ",".join(sorted(key for key, value in meta.items() if not isinstance(value, str)))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        try:
            save_file(tensors, str(temporary), metadata={**text, "format": kind, "json": coded})
        except SafetensorError as error:  # its own error for a full disk
            raise OSError(str(error)) from error
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    """The header's keys in order, in place: safetensors writes them in another order every time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and provenance of a file that `write_tensors` wrote; EmolabError where it is not one of this kind."""
    from safetensors import SafetensorError, safe_open

    path = user_path(path)
    if not path.is_file():
        raise FileError(f"no file {str(path)!r}; expected a safetensors file written by emolab")
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = dict(sorted((file.metadata() or {}).items()))  # it comes in another order every time
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        stored_kind = meta.pop("format", "none")
        if stored_kind == kind:
            coded = [key for key in meta.pop("json", "").split(",") if key]
            return tensors, {**meta, **{key: json.loads(meta[key]) for key in coded}}
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged or no safetensors file ({error}); save it again") from error
    raise FileError(f"{path} has format {stored_kind!r}, expected {kind!r}; it was not written by this part of emolab")


def read_json(path: str | Path, expected: str) -> Any:
    """The content of a JSON file; FileError where it cannot be read, says a key twice or is nested beyond all use.

    expected: how the message ends.
    """
    try:
        return parse_json(user_path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} cannot be read as JSON ({error}); {expected}") from error


def parse_json(content: str | bytes) -> Any:
    """What JSON says; ValueError, too, where it says a key twice, of which json would keep the last."""

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{max(names, key=names.count)!r} occurs twice in one object")
        return dict(pairs)

    return json.loads(content, object_pairs_hook=each_once)


def write_json(path: str | Path, data: Any) -> None:
    """One JSON file, atomically; NaN is refused, since JSON knows none."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def for_json(value: Any, *, decimals: int | None = None, digits: int | None = None) -> Any:
    """A value as JSON takes it: plain numbers, lists and dicts; NaN and infinity, which JSON does not know, are None.

    decimals: numbers are rounded to so many places; digits: to so many significant ones. Whole numbers stay whole.

    >>> for_json({"share": np.float32(2 / 3), "by layer": np.array([0.12345, np.nan]), "n": 3}, decimals=4)
    {'share': 0.6667, 'by layer': [0.1235, None], 'n': 3}
    """
    value = value.tolist() if hasattr(value, "tolist") else value  # of numpy, pandas or torch
    if isinstance(value, Mapping):
        return {str(key): for_json(item, decimals=decimals, digits=digits) for key, item in value.items()}
    if value is None or isinstance(value, str | bool | Integral):
        return value
    if not isinstance(value, Real):
        return [for_json(item, decimals=decimals, digits=digits) for item in value]
    if not math.isfinite(value):
        return None
    number = float(value) if decimals is None else round(float(value), decimals)
    return number if digits is None else float(f"{number:.{digits}g}")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """One parquet file, atomically."""
    with atomic(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_table(table: pd.DataFrame, path: str | Path | None, settings: dict) -> pd.DataFrame:
    """One parquet file, atomically, with the settings that made it; without a path only the settings are noted."""
    table.attrs["emolab"] = settings  # pandas keeps attrs in the parquet schema
    if path is not None:
        write_parquet(user_path(path), table)
    return table


def read_table(path: str | Path | None, settings: dict) -> pd.DataFrame | None:
    """What `write_table` wrote, None where there is nothing; EmolabError where it was made with other settings."""
    if path is None or not user_path(path).exists():
        return None
    import pandas as pd

    try:
        table = pd.read_parquet(user_path(path))
        stored = dict(table.attrs["emolab"])
    except Exception as error:  # pyarrow raises a zoo of its own
        raise FileError(f"{path} is damaged or was not written by emolab; move it away") from error
    need_same(path, stored, settings)
    return table


def need_same(path: str | Path, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """MismatchError unless a file was made with these settings."""
    differing = [key for key in {**stored, **settings} if stored.get(key) != settings.get(key)]
    if differing:
        both = "; ".join(f"{key}: there {stored.get(key)!r}, here {settings.get(key)!r}" for key in differing)
        raise MismatchError(f"{path} was made with other settings ({both}); choose another out folder")


def kept(path: str | Path, settings: dict, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """What `make` gives, kept in a file beside the settings that it depends on, and made again where these differ.

    It is what the file holds in either case, so that a continued run goes on from the same as an undisturbed one.
    """
    with suppress(EmolabError):  # made from something else, or damaged: it can be made again
        if (table := read_table(path, settings)) is not None:
            return table
    write_table(make(), path, settings)
    table = read_table(path, settings)
    assert table is not None
    return table


def stable(value: Any) -> str:
    """What tells values apart in every process: sets in order, and what has only an address like nothing else.

    >>> stable({"b", "a"}), stable(len) == stable(len)
    ("{'a', 'b'}", True)
    """
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {stable(x)}' for k, x in value.items())}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(stable, value)))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(stable, value))}]"
    if is_dataclass(value) and not hasattr(value, "fingerprint"):
        named = {f.name: getattr(value, f.name) for f in fields(value)}
        return f"{type(value).__qualname__}{stable(named)}"
    text = repr(value)
    return f"{text} {uuid.uuid4()}" if " at 0x" in text else text
