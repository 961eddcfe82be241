"""The student edition of notebook 07, made from the solution edition: `python -m tools.editions`.

In the source each exercise's code cell (tag "exercise") holds its solution between nbgrader's delimiters, and the check
(tag "check") follows. In the student edition the solution is replaced by a stub and comes, folded, after the check.
"""

from __future__ import annotations

import argparse
import re
from copy import deepcopy
from pathlib import Path
from textwrap import indent

import nbformat
from nbformat.v4 import new_markdown_cell

from emolab.base.errors import EmolabError
from tools.notebooks import STUDENT, read_notebook, tidy

SOURCE = Path("notebooks/07_classroom_solution.ipynb")
STUB = "# YOUR CODE HERE\nraise NotImplementedError()"  # as nbgrader writes it
_SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n(.*?)\n[ \t]*### END SOLUTION$", re.MULTILINE | re.DOTALL)


def student_edition(source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without solutions and outputs. EmolabError for an exercise without solution or without check.

    Cells tagged "teacher" and nbgrader's marks are left out; checks are tagged "raises-exception", so that
    "Run All Cells" goes on past exercises that are not done yet.
    """
    nb, solution = deepcopy(source), None
    nb.metadata.pop("emolab", None)  # where the solution edition was executed
    cells, nb.cells = nb.cells, []
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata.pop("nbgrader", None)
        if "teacher" in tags:
            continue
        nb.cells.append(cell)
        if cell.cell_type != "code":
            continue
        cell.outputs, cell.execution_count = [], None
        if "exercise" in tags:
            if solution is not None:
                raise EmolabError(f"cell {solution.id} has no check; expected a cell tagged check after each exercise")
            solution = _folded(cell)
            cell.source = _SOLUTION.sub(lambda found: indent(STUB, found[1]), cell.source)
        if "SOLUTION" in cell.source:
            raise EmolabError(f"cell {cell.id} still holds a solution; tag it exercise and mend its delimiters")
        if "check" in tags:
            if solution is None:
                raise EmolabError(f"cell {cell.id} is a check without an exercise before it")
            cell.metadata["tags"] = [*tags, "raises-exception"]
            nb.cells.append(solution)
            solution = None
    if solution is not None:
        raise EmolabError(f"cell {solution.id} has no check; expected a cell tagged check after each exercise")
    return nb


def _folded(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The solution as a folded markdown cell, from the code that the checks are tested with."""
    if not _SOLUTION.search(cell.source):
        raise EmolabError(f"exercise {cell.id} lacks ### BEGIN SOLUTION and ### END SOLUTION, each on its own line")
    code = _SOLUTION.sub(lambda found: found[2], cell.source)
    text = f"<details><summary>Solution</summary>\n\n```python\n{code}\n```\n\n</details>"
    return new_markdown_cell(text, id=f"{cell.id}-solution", metadata={"tags": ["solution"]})


def student_path(source: str | Path) -> Path:
    path = Path(source)
    if not path.stem.endswith("_solution"):
        raise EmolabError(f"{path.name} is no solution edition; expected a name that ends in _solution.ipynb")
    return path.with_name(path.name.replace("_solution", STUDENT))


def build(source: str | Path = SOURCE, *, check: bool = False) -> bool:
    """Write the student edition beside its source; return whether it was stale. check: look only, write nothing.

    >>> editions.build("notebooks/07_classroom_solution.ipynb")          # doctest: +SKIP
    False
    """
    if not Path(source).is_file():
        raise EmolabError(f"no {source}; run this in the repository's root, or name the solution edition")
    target = student_path(source)
    text = nbformat.writes(student_edition(tidy(read_notebook(Path(source))))).rstrip("\n") + "\n"
    text = text.replace(Path(source).name, target.name)  # badges lead to the edition that they stand in
    stale = not target.exists() or target.read_text(encoding="utf-8") != text
    if stale and not check:
        target.write_text(text, encoding="utf-8", newline="\n")
    return stale


def main(argv: list[str] | None = None) -> int:
    """Write the student edition of notebook 07 from the solution edition. Exit status of --check: 1 where stale."""
    parser = argparse.ArgumentParser(prog="python -m tools.editions", description=main.__doc__)
    parser.add_argument("source", nargs="?", default=SOURCE, help=f"default: {SOURCE}")
    parser.add_argument("--check", action="store_true", help="say whether it is stale, write nothing")
    args = parser.parse_args(argv)
    try:
        stale = build(args.source, check=args.check)
    except EmolabError as error:
        print(error)
        return 1
    state = ("is stale; run python -m tools.editions" if args.check else "written") if stale else "is up to date"
    print(f"{student_path(args.source)} {state}")
    return int(stale and args.check)


if __name__ == "__main__":
    raise SystemExit(main())
