"""Badges of Colab and Binder, and Colab's installation cell, from one public address: `python -m tools.badges`.

The address is `Repository` under `[project.urls]` in pyproject.toml. Without one, or with one that neither service can
open, no badge is shown: a broken one is worse than none. Outputs of the notebooks stay as they are.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

from emolab.base.errors import EmolabError
from tools import editions
from tools.notebooks import is_student, read_notebook, tidy

BRANCH = "main"
COLAB = "colab"  # ends the id of the cell that installs the package there
_ADDRESS = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
_LINE = re.compile(r"^\[!\[(?:Colab|Binder)\].*\n\n?", re.MULTILINE)
_INSTALL = """\
import sys

if "google.colab" in sys.modules:  # a machine that has no emolab yet
    get_ipython().system("pip install -q 'emolab @ git+{address}@{branch}'")"""
_CHECKS = """
    get_ipython().system("wget -q https://raw.githubusercontent.com/{place}/{branch}/notebooks/classroom_checks.py")"""


def address(root: str | Path = ".") -> str | None:
    """The public address that pyproject.toml names, as https://github.com/OWNER/REPO; None where it names none.

    >>> address("/work/emolab")      # doctest: +SKIP
    'https://github.com/OWNER/REPO'

    Raises EmolabError for an address that Colab and Binder cannot open.
    """
    path = Path(root, "pyproject.toml")
    if not path.is_file():
        raise EmolabError(f"no {path}; run this in the repository's root")
    found = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}).get("urls", {}).get("Repository")
    if found is None:
        return None
    parts = _ADDRESS.fullmatch(found)
    if parts is None:
        raise EmolabError(f"Repository in {path} is {found!r}; badges need https://github.com/OWNER/REPO")
    return "https://github.com/{}/{}".format(*parts.groups())


def badges(repository: str, notebook: str | None = None, *, branch: str = BRANCH) -> str:
    """Colab and Binder of one notebook, or Binder of all, as one line of Markdown.

    >>> print(badges("https://github.com/OWNER/REPO"))
    [![Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/REPO/main?urlpath=lab/tree/notebooks)
    """
    place = repository.removeprefix("https://github.com/")
    path = f"notebooks/{notebook}" if notebook else "notebooks"
    binder = f"https://mybinder.org/v2/gh/{place}/{branch}?urlpath=lab/tree/{path}"
    line = f"[![Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    if notebook is None:
        return line
    colab = f"https://colab.research.google.com/github/{place}/blob/{branch}/{path}"
    return f"[![Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) {line}"


def with_badges(text: str, line: str | None) -> str:
    """A Markdown text with the line below its title, instead of the badges that it had; None: without."""
    title, _, rest = _LINE.sub("", text).partition("\n")
    return "\n".join([title, *(["", line] if line else []), rest]) if rest or line else title


def notebook_with_badges(nb: nbformat.NotebookNode, name: str, repository: str | None) -> nbformat.NotebookNode:
    """Title cell and installation cell of a notebook for this address, in place; returns it."""
    nb.cells = [cell for cell in nb.cells if not cell.id.endswith(COLAB)]
    nb.cells[0].source = with_badges(nb.cells[0].source, repository and badges(repository, name))
    if repository:
        first = next(i for i, cell in enumerate(nb.cells) if cell.cell_type == "code")
        source = _INSTALL.format(address=repository, branch=BRANCH)
        # Colab opens a notebook without the folder that it lies in.
        if any("import classroom_checks" in cell.source for cell in nb.cells):
            source += _CHECKS.format(place=repository.removeprefix("https://github.com/"), branch=BRANCH)
        cell = new_code_cell(source, id=f"{nb.cells[0].id.split('-')[0]}-{COLAB}", metadata={"tags": [COLAB]})
        nb.cells.insert(first, cell)
    return tidy(nb)


def write(root: str | Path = ".") -> list[Path]:
    """Bring README.md and all notebooks in line with the address; returns what had to be changed.

    >>> write("/work/emolab")      # doctest: +SKIP
    []
    """
    root, repository, changed = Path(root), address(root), []
    paths = [p for p in sorted((root / "notebooks").glob("[0-9]*.ipynb")) if not is_student(p)]
    for path in (root / "README.md", *paths):
        old = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            new = with_badges(old, repository and badges(repository))
        else:
            nb = notebook_with_badges(read_notebook(path), path.name, repository)
            new = nbformat.writes(nb).rstrip("\n") + "\n"
        if new != old:
            path.write_text(new, encoding="utf-8", newline="\n")
            changed.append(path)
    source = root / editions.SOURCE
    if source in changed:
        editions.build(source)
    return changed


def main() -> int:
    """Write the badges of Colab and Binder for the address in pyproject.toml, or take them out where it has none."""
    try:
        changed = write()
        said = f"badges for {address()}" if address() else "no Repository in pyproject.toml: no badges"
    except EmolabError as error:
        print(error)
        return 1
    print(f"{said}; {len(changed)} files changed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
