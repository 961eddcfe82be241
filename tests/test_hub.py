"""A run goes to the hub and comes back: no network, the client replaced by a folder; its own pattern filter is kept."""

import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from emolab.errors import EmolabError
from emolab.hub import PATTERNS, pull_run, push_run

SAFE = {"vectors.safetensors", "summary.json", "scores.parquet", "figures/norms.png", "geometry/probe.parquet"}
CODE = ("model.pt", "x.bin", "x.pkl", "x.pickle", "x.npy", "x.npz", "x.py", "x.ipynb", "x.sh")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    for name in SAFE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    for name in ("model.pt", "cache.pkl", "run.py", "figures/x.bin", ".vectors.safetensors.17.tmp"):
        (folder / name).write_bytes(b"not for others")
    return folder


def called_like(stand_in):
    """The stand-in, refusing arguments that the real function does not take."""
    real = inspect.signature(getattr(huggingface_hub, stand_in.__name__))

    def call(*args, **options):
        real.bind(*args, **options)
        return stand_in(*args, **options)

    return call


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one repository, which is a folder; what was asked of it is in `asked`."""
    store, asked = tmp_path / "hub", []

    def create_repo(repo_id, **options):
        asked.append(("create", repo_id, options))
        store.mkdir(exist_ok=True)

    def copy(source, target, patterns):
        files = [str(f.relative_to(source)) for f in sorted(Path(source).rglob("*")) if f.is_file()]
        for name in filter_repo_objects(files, allow_patterns=patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(source) / name, target / name)

    def upload_folder(*, repo_id, folder_path, allow_patterns, **options):
        asked.append(("upload", repo_id, options))
        copy(folder_path, store, allow_patterns)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(repo_id, *, local_dir, allow_patterns, **options):
        asked.append(("download", repo_id, options))
        if not store.is_dir():
            raise huggingface_hub.errors.OfflineModeIsEnabled("offline")
        (Path(local_dir) / ".cache/huggingface").mkdir(parents=True, exist_ok=True)
        copy(store, Path(local_dir), allow_patterns)

    for stand_in in (create_repo, upload_folder, snapshot_download):
        monkeypatch.setattr(huggingface_hub, stand_in.__name__, called_like(stand_in))
    return SimpleNamespace(store=store, asked=asked)


def files(folder):
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


def test_a_run_comes_back_as_it_went_without_what_could_run_code(run, hub, tmp_path):
    assert push_run(run, "me/x") == "https://hub/me/x/commit/1"
    assert files(hub.store) == SAFE
    assert hub.asked[0] == ("create", "me/x", {"repo_type": "dataset", "private": True, "exist_ok": True})
    (hub.store / "evil.pkl").write_bytes(b"planted")
    (hub.store / "evil.py").write_bytes(b"planted")
    target = tmp_path / "theirs"
    assert pull_run("me/x", target, revision="3f2a91c") == target
    assert hub.asked[-1] == ("download", "me/x", {"repo_type": "dataset", "revision": "3f2a91c"})
    assert files(target) == SAFE and (target / "scores.parquet").read_bytes() == b"scores.parquet"
    pull_run("me/x", target)  # a folder filled by an earlier pull is brought up to date
    push_run(run, "me/x", private=False)
    assert [options["private"] for what, _, options in hub.asked if what == "create"] == [True, False]


@pytest.mark.parametrize("name", CODE)
def test_patterns_let_nothing_through_that_runs_code_when_read(name):
    assert not list(filter_repo_objects([name, f"deep/{name}"], allow_patterns=list(PATTERNS)))


def test_what_is_no_run_is_refused(run, hub, tmp_path):
    with pytest.raises(EmolabError, match="holds no run; expected one of vectors.safetensors"):
        push_run(tmp_path / "absent", "me/x")
    assert not hub.asked
    with pytest.raises(EmolabError, match="was not filled by pull_run; choose a new folder"):
        pull_run("me/x", run)
    assert not hub.asked and files(run)
    hub.store.mkdir()
    (hub.store / "README.md").write_text("no run")
    with pytest.raises(EmolabError, match="holds no run"):
        pull_run("me/x", tmp_path / "new")


def test_the_hub_out_of_reach_is_one_clear_error(run, hub, tmp_path, monkeypatch):
    with pytest.raises(EmolabError, match=r"cannot pull 'me/x' \(offline\); check name, revision and connection"):
        pull_run("me/x", tmp_path / "new")

    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with pytest.raises(EmolabError, match=r"cannot push .*run to 'me/x' \(no route\); check the name, and log in"):
        push_run(run, "me/x")
