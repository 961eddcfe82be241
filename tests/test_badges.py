"""Badges: addresses that the services take, in README and notebooks, and none at all without a public address."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import nbformat
import pytest

from emolab import EmolabError
from tools import editions
from tools.badges import address, badges, with_badges, write
from tools.notebooks import is_student, problems, tidy

ROOT = Path(__file__).parent.parent
HERE = "https://github.com/some-one/emo.lab"


@pytest.fixture
def repository(tmp_path):
    """A copy of what is written to; call it with an address, or None, to set it."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "README.md").write_text("# emolab\n\nA workbench.\n\n![figure](x.png)\n")

    def name(url: str | None) -> Path:
        urls = f'[project.urls]\nRepository = "{url}"\n' if url else ""
        (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "emolab"\n{urls}')
        return tmp_path

    return name


def files(root: Path) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in [root / "README.md", *root.glob("notebooks/*.ipynb")]}


def test_the_addresses_are_those_of_the_services():
    line = badges("https://github.com/OWNER/REPO", "00_a.ipynb")
    assert "(https://colab.research.google.com/github/OWNER/REPO/blob/main/notebooks/00_a.ipynb)" in line
    assert "(https://mybinder.org/v2/gh/OWNER/REPO/main?urlpath=lab/tree/notebooks/00_a.ipynb)" in line
    assert "dev?urlpath=lab/tree/notebooks)" in badges("https://github.com/OWNER/REPO", branch="dev")


def test_with_an_address_and_without(repository):
    """Put in, changed, taken out again: at the end every byte is as it was; a second call changes nothing."""
    root = repository(None)
    write(root)
    before = files(root)
    assert "mybinder" not in "".join(before.values()) and "google.colab" not in "".join(before.values())
    assert len(write(repository(HERE + ".git"))) == len(before) - 1 and write(root) == []  # the student's is derived
    first = files(root)
    assert first["README.md"].startswith(f"# emolab\n\n{badges(HERE)}\n\nA workbench.\n")
    for name in set(first) - {"README.md"}:
        nb = nbformat.reads(first[name], as_version=4)
        title, rest = nb.cells[0].source.split("\n", 1)
        assert title.startswith("# ") and rest.startswith(f"\n{badges(HERE, name)}\n\n") and rest.count("mybinder") == 2
        install = next(c for c in nb.cells if c.cell_type == "code")
        assert install.metadata["tags"] == ["colab"] and f"git+{HERE}@main" in install.source
        checks = "https://raw.githubusercontent.com/some-one/emo.lab/main/notebooks/classroom_checks.py"
        assert (checks in install.source) is name.startswith("07_classroom")
        nbformat.validate(nb)
        assert problems(nb) == []
        assert is_student(name) or tidy(nb) == nbformat.reads(first[name], as_version=4)
    assert not editions.build(root / editions.SOURCE, check=True), "the student edition is stale"
    write(repository("https://github.com/another/place"))
    assert "some-one" not in "".join(files(root).values())
    write(repository(None))
    assert files(root) == before


def test_the_installation_runs_on_colab_alone(monkeypatch, repository):
    write(root := repository(HERE))
    nb = nbformat.read(next(root.glob("notebooks/00_*.ipynb")), as_version=4)
    source = next(c for c in nb.cells if c.cell_type == "code").source
    ran = []
    shell = type("Shell", (), {"system": lambda self, command: ran.append(command)})
    names = {"get_ipython": shell}
    exec(compile(ast.parse(source), "cell", "exec"), names)
    assert ran == []
    monkeypatch.setitem(__import__("sys").modules, "google.colab", shell)
    exec(compile(ast.parse(source), "cell", "exec"), names)
    assert ran == [f"pip install -q 'emolab @ git+{HERE}@main'"]


@pytest.mark.parametrize("url", ["https://example.org/a/b", "https://github.com/alone", "github.com/a/b"])
def test_an_address_that_cannot_work_is_refused(repository, url):
    root = repository(url)
    before = files(root)
    with pytest.raises(EmolabError, match="need https://github.com/OWNER/REPO"):
        write(root)
    assert files(root) == before


def test_outside_of_a_repository(tmp_path):
    with pytest.raises(EmolabError, match="run this in the repository's root"):
        address(tmp_path)


def test_a_title_alone():
    assert with_badges("# T", None) == "# T"
    line = "[![Colab](a)](b)"
    assert with_badges(with_badges("# T\n\nx", line), line) == f"# T\n\n{line}\n\nx"


def test_the_repository_is_up_to_date(repository):
    """README and notebooks say what pyproject.toml says."""
    root = repository(None)
    shutil.copy(ROOT / "README.md", root)
    shutil.copy(ROOT / "pyproject.toml", root)
    assert write(root) == [], "run python -m tools.badges"
