"""UMAP where numba can write no cache: a container of another user, a home folder and packages that are read-only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numba.core.config
import numpy as np
import pytest

from emolab.base.errors import ResourceError
from emolab.geometry import projections

UMAP = """import numba.core.config
if not numba.core.config.CACHE_DIR:
    raise RuntimeError("cannot cache function 'rdist': no locator available for file 'layouts.py'")
class UMAP:
    def __init__(self, **options): pass
    def fit_transform(self, x): return x[:, :2]
"""
# As numba finds them in that container: no place is offered but the one that it is told.
SHUT = """
import numba.core.caching as caching
for kind in caching.CacheImpl._locator_classes:
    if kind is not caching.UserProvidedCacheLocator:
        kind.from_function = classmethod(lambda cls, *args, **options: None)
import numpy as np
from emolab.geometry.projections import project
print(project(np.random.default_rng(0).normal(size=(20, 8)), ["umap"])["umap"].shape)
"""


@pytest.fixture
def picky(tmp_path, monkeypatch):
    """A UMAP that can only be imported where numba has a folder."""
    (tmp_path / "umap.py").write_text(UMAP)
    for name in [name for name in sys.modules if name.split(".")[0] == "umap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", "")
    yield
    sys.modules.pop("umap", None)


def points():
    return projections.project(np.eye(6, 3), ["umap"])["umap"]


def test_a_temporary_folder_will_do(picky, tmp_path, monkeypatch):
    monkeypatch.setattr(projections.tempfile, "mkdtemp", lambda **options: str(tmp_path / "made"))
    assert points().shape == (6, 2) and numba.core.config.CACHE_DIR == str(tmp_path / "made")


def test_without_any_folder_it_says_what_to_set(picky, monkeypatch):
    def none(**options):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(projections.tempfile, "mkdtemp", none)
    with pytest.raises(ResourceError, match=r'cannot cache function.*NUMBA_CACHE_DIR .*, or take methods=\("pca",\)'):
        points()


@pytest.mark.slow
def test_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-c", SHUT], capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip().endswith("(20, 2)"), done.stderr[-2000:]
