"""Share the folder of a run through the Hugging Face hub: tables, vectors, figures; nothing that runs code when read.

>>> import emolab
>>> emolab.push_run("runs/smollm2", "me/emotion-vectors")                         # doctest: +SKIP
>>> emolab.pull_run("me/emotion-vectors", "runs/theirs", revision="3f2a91c") # doctest: +SKIP
>>> vectors = emolab.EmotionVectors.load("runs/theirs/vectors.safetensors")       # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

from emolab.errors import EmolabError
from emolab.storage import user_path

# What a run is made of. No pickle and no script; `*` spans folders.
PATTERNS = ("*.json", "*.parquet", "*.safetensors", "*.gguf", "*.csv", "*.md", "*.html", "*.png", "*.svg")
_KIND = "dataset"
_RUN = ("vectors.safetensors", "summary.json", "manifest.json", "responses.parquet", "sweep.parquet")
_MARK = ".cache/huggingface"  # what the hub's client leaves in a folder that it filled


def push_run(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a run's folder into a dataset repository, made if it does not exist; returns the address of the commit.

    Log in first (`hf auth login`, or the variable HF_TOKEN). Only files of `PATTERNS` are sent. They name the model,
    and where it was loaded from a directory, that path too (`source` in manifest.json and in the vectors' header).

    Raises EmolabError where `folder` holds no run, and for whatever the hub refuses.

    >>> push_run("runs/smollm2", "me/emotion-vectors", private=False)           # doctest: +SKIP
    """
    import huggingface_hub

    folder = user_path(folder)
    _check_run(folder)
    try:
        huggingface_hub.create_repo(repo_id, repo_type=_KIND, private=private, exist_ok=True)
        done = huggingface_hub.upload_folder(
            repo_id=repo_id,
            repo_type=_KIND,
            folder_path=folder,
            allow_patterns=list(PATTERNS),
            commit_message="Upload an emolab run",
        )
    except Exception as error:  # the hub client raises many kinds
        raise EmolabError(f"cannot push {folder} to {repo_id!r} ({error}); check the name, and log in") from error
    return str(done.commit_url)


def pull_run(repo_id: str, folder: str | Path, *, revision: str | None = None) -> Path:
    """Download a run from a dataset repository into `folder`, new or filled by an earlier pull; returns the folder.

    revision: a branch, a tag or, to get the same for ever, a commit; default the newest. Only files of `PATTERNS` are
    fetched.

    Raises EmolabError for a folder that holds something else, a repository that is out of reach or holds no run.

    >>> pull_run("me/emotion-vectors", "runs/theirs")                        # doctest: +SKIP
    """
    import huggingface_hub

    folder = user_path(folder)
    if folder.exists() and not (folder / _MARK).is_dir() and (not folder.is_dir() or any(folder.iterdir())):
        raise EmolabError(f"{folder} exists and was not filled by pull_run; choose a new folder")
    try:
        huggingface_hub.snapshot_download(
            repo_id, repo_type=_KIND, revision=revision, local_dir=folder, allow_patterns=list(PATTERNS)
        )
    except Exception as error:  # the hub client raises many kinds
        raise EmolabError(
            f"cannot pull {repo_id!r} ({error}); check name, revision and connection, and for a private one log in"
        ) from error
    _check_run(folder)
    return folder


def _check_run(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _RUN):
        raise EmolabError(f"{folder} holds no run; expected one of {', '.join(_RUN)} in it")
