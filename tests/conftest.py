"""Shared models: tiny, random, built on the spot; session-wide, so tests must leave them as they found them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from emolab.base import progress
from emolab.models.fetch import fetch
from emolab.models.load import load_model
from tests import tiny

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_bars(monkeypatch):
    """What a test, or an example, says of progress bars holds for itself alone."""
    monkeypatch.setattr(progress, "_shown", False)


@dataclass
class Bar:
    """In place of tqdm's bar: whether it was shown, and what it counted."""

    desc: str
    total: int
    unit: str
    initial: int
    disable: bool
    delay: float
    moves: list[int] = field(default_factory=list)

    @property
    def shown(self) -> bool:
        return not self.disable

    def update(self, n: int) -> None:
        self.moves.append(n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_) -> None:
        pass


@pytest.fixture
def bars(monkeypatch):
    """Every bar that was opened; bars are turned on."""
    opened: list[Bar] = []

    def open_bar(**options):
        opened.append(Bar(**options))
        return opened[-1]

    monkeypatch.setattr(progress, "tqdm", open_bar)
    progress.set_progress(True)
    return opened


def pytest_report_header():
    """Whose kernels do the sums (CONTRIBUTING.md, "Other processors")."""
    from threadpoolctl import threadpool_info

    blas = {pool.get("architecture") for pool in threadpool_info() if pool["internal_api"] == "openblas"}
    return f"kernels: torch {torch.backends.cpu.get_cpu_capability()}, OpenBLAS {', '.join(sorted(map(str, blas)))}"


# Each holds one dear fixture, so a file goes to one process: the longest begin, and the other process takes the rest.
LONG = ("test_pipeline", "test_baselines", "test_cli", "test_docstrings", "test_survival", "test_mini")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory):
    """Directory of a Llama with grouped-query attention, a chat template with system role, and BOS added."""
    return tiny.save(tmp_path_factory.mktemp("tiny_llama"), tiny.build(tiny.llama_config()), tiny.tokenizer())


@pytest.fixture(scope="session")
def tiny_gpt2_dir(tmp_path_factory):
    """Directory of a GPT-2: absolute positions, LayerNorm, no chat template, no BOS, no pad token."""
    tok = tiny.tokenizer(chat=None, add_bos=False, pad=False)
    return tiny.save(tmp_path_factory.mktemp("tiny_gpt2"), tiny.build(tiny.gpt2_config()), tok)


@pytest.fixture(scope="session")
def smollm2():
    """The default model, a real one, in float32: leave it as you found it. Fetched where it is not yet in the cache."""
    fetch("smollm2")
    return load_model("smollm2", device="cpu")


@pytest.fixture(scope="session")
def tiny_llama(tiny_llama_dir):
    return load_model(tiny_llama_dir, device="cpu")


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_gpt2_dir):
    return load_model(tiny_gpt2_dir, device="cpu")


@pytest.fixture(scope="session")
def world(tiny_llama, tiny_gpt2, tmp_path_factory):
    """What bad input stands beside (tests/refusing.py)."""
    from tests.refusing import World

    return World(tiny_llama, tiny_gpt2, tmp_path_factory.mktemp("refusals"))
