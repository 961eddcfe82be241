"""Run notebooks from a fresh kernel and keep what is committed of them stable: `python -m tools.notebooks`.

>>> from tools.notebooks import run_notebook, tidy, problems      # doctest: +SKIP
>>> nb = run_notebook("notebooks/00_steer_in_five_minutes.ipynb")  # written nowhere # doctest: +SKIP
>>> problems(nb)                                                   # doctest: +SKIP
[]

Two runs of an unchanged notebook give the same bytes: times, widget ids, progress bars, memory addresses and the
Python version are left out, cell ids are kept, and execution counts go 1..n.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat

from emolab.base.errors import EmolabError, FileError
from emolab.base.folders import WAIT
from emolab.plot.save import adopt_figures, figures_directory, read_manifest
from tools.agreement import figures_differ, notebooks_differ, processor
from tools.gallery import gallery_problems, write_gallery

STUDENT = "_student"  # ends the name of the notebook that a class gets
MAX_BYTES = 1_000_000  # code hosts stop showing larger notebooks
_PROGRESS = re.compile(r"\d+%\||\d+(it|s)/(it|s)|\d+it \[")
_WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_KEPT = ("tags", "nbgrader")  # of a cell's metadata; the rest is how somebody looked at it
SECONDS = {  # that each takes on one core, where the others have made what they share
    "02_geometry": 175, "04_steering": 150, "08_sixty_emotions": 120, "03_heads": 110, "05_evaluation": 85,
    "07_classroom_solution": 75, "00_steer_in_five_minutes": 65, "06_your_own_model": 48,
    "01_extracting_emotion_vectors": 47,
}  # fmt: skip
RECORD = "emolab"  # in a notebook's metadata: where it was executed
MAX_TOLD = 5  # of the differences of a notebook that is written anew
_RUN = re.compile(r"runs/([\w.-]+)")
_NAMED = re.compile(r"nb\d\d-")


def run_notebook(path: str | Path, *, figures: str | Path | None = None, timeout: int = 600) -> nbformat.NotebookNode:
    """Execute one notebook from top to bottom in a fresh kernel, in its own folder; return it executed and tidied.

    figures: where `save_figure` writes meanwhile (default: the repository's own figures/). timeout: seconds per cell.
    Raises EmolabError with the cell and its error where one fails; a cell tagged `raises-exception` may fail.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    path = Path(path)
    nb = read_notebook(path)
    where = {"metadata": {"path": str(path.parent)}}
    quiet = ["--IPKernelApp.log_level=40"]  # the kernel's own start-up notes
    client = NotebookClient(
        nb, timeout=timeout, kernel_name="python3", resources=where, extra_arguments=quiet, coalesce_streams=True,
        record_timing=False, store_widget_state=False,
    )  # fmt: skip
    env = os.environ | {"EMOLAB_NOTEBOOK": path.name, WAIT: str(timeout)}
    if figures is not None:
        env["EMOLAB_FIGURES"] = str(Path(figures).resolve())
    try:
        with ThreadPoolExecutor(1) as own:  # its own event loop, closed at the end; a notebook may call this, too
            own.submit(asyncio.run, client.async_execute(env=env)).result()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise EmolabError(f"{path} stopped: {str(error).strip()}") from None
    nb.metadata[RECORD] = {"processor": processor()}
    return tidy(nb)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook as it lies there; FileError where it is missing, damaged or none."""
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    except Exception as error:  # nbformat has many kinds for a damaged file
        why = " ".join(str(error).split())[:150]
        raise FileError(f"no notebook can be read from {path} ({why}); expected a whole .ipynb") from error
    return nb


def is_student(path: str | Path) -> bool:
    """Whether a notebook is a student edition (`tools.editions`): its cells stay empty, and its exercises stop."""
    return Path(path).stem.endswith(STUDENT)


def tidy(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out of an executed notebook, in place, all that differs from run to run; returns it.

    Also what JupyterLab adds to a notebook that is saved by hand: the state of the view, empty cells at the end, and
    random ids of new cells where the others are named nb00-....
    """
    where = {RECORD: nb.metadata[RECORD]} if RECORD in nb.metadata else {}
    nb.metadata = nbformat.from_dict({**where, "kernelspec": KERNEL, "language_info": {"name": "python"}})
    while nb.cells and not nb.cells[-1].source.strip():
        nb.cells.pop()
    _name_cells(nb)
    count = 0
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in _KEPT if cell.metadata.get(k)})
        if cell.cell_type != "code":
            continue
        count += bool(cell.source.strip())
        cell.execution_count = count if cell.source.strip() else None
        tidied = (_tidy_output(out, f"{cell.id}-{i}") for i, out in enumerate(cell.outputs))
        cell.outputs = [out for out in tidied if out is not None]
        for out in cell.outputs:
            if "execution_count" in out:
                out.execution_count = cell.execution_count
    return nb


def _name_cells(nb) -> None:
    prefixes = Counter(found[0] for cell in nb.cells if (found := _NAMED.match(cell.get("id", ""))))
    if not prefixes:
        return
    prefix = prefixes.most_common(1)[0][0]
    taken = {cell.get("id") for cell in nb.cells}
    free = (f"{prefix}new-{i}" for i in itertools.count(1) if f"{prefix}new-{i}" not in taken)
    for cell in nb.cells:
        if not cell.get("id", "").startswith(prefix):
            cell.id = next(free)


def _tidy_output(out, name: str):
    if out.output_type == "stream":
        if out.name == "stderr":  # progress bars go, warnings stay (and are reported by `problems`)
            lines = [line for line in re.split(r"[\r\n]+", out.text) if line.strip() and not _PROGRESS.search(line)]
            out.text = "".join(line + "\n" for line in lines)
        return out if out.text else None
    if "data" not in out:
        return out
    # A widget is drawn by a live kernel only, and its ids are random. Readers keep its static HTML, if it has any.
    if out.data.pop(_WIDGET, None) is not None and set(out.data) <= {"text/plain"}:
        return None
    if "text/plain" in out.data:
        out.data["text/plain"] = re.sub(r" at 0x[0-9a-fA-F]+", "", out.data["text/plain"])
    if "text/html" in out.data:  # pandas draws the id of a styled table by lot
        out.data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}(?![0-9A-Za-z])", f"T_{name}", out.data["text/html"])
    return out


def problems(nb: nbformat.NotebookNode) -> list[str]:
    """What keeps an executed notebook from being committed: errors, warnings, more than 1 MB, missing cell ids."""
    found = []
    for number, cell in enumerate(nb.cells, 1):
        if not cell.get("id"):
            found.append(f"cell {number} has no id")
        tags = cell.metadata.get("tags", [])
        for out in cell.get("outputs", []):
            # The check of an exercise may say that nothing is written yet, and nothing else.
            expected = "raises-exception" in tags and ("check" not in tags or out.get("ename") == "Unfinished")
            if out.output_type == "error" and not expected:
                found.append(f"cell {number} ends in {out.ename}: {out.evalue}")
            if out.output_type == "stream" and out.name == "stderr":
                found.append(f"cell {number} wrote to stderr: {out.text.strip()[:300]}")
    size = len(_dumps(nb).encode())
    if size > MAX_BYTES:
        found.append(f"{size / 1e6:.2f} MB with its outputs; at most {MAX_BYTES / 1e6:.0f} MB: show fewer figures")
    return found


def differences(path: Path, nb: nbformat.NotebookNode, drawn: Path, figures: Path) -> tuple[list[str], list[str]]:
    """How an executed notebook and its figures differ from what is committed: lines to print, and figures to replace.

    drawn: the folder of the figures that it drew; figures: the committed ones. Nothing to print means that all may stay
    as it is (`tools.agreement`). Where the notebook cannot stay, figures do that agree to the last digits.
    """
    committed = read_notebook(path)
    strict = committed.metadata.get(RECORD, nb.metadata[RECORD]) == nb.metadata[RECORD]
    found = notebooks_differ(nb, committed, strict=strict)
    found += [f"{name}: {what}" for name, what in figures_differ(drawn, figures, strict=strict).items()]
    if found and not strict:
        found.append(f"executed on {nb.metadata[RECORD]['processor']}, committed from {committed.metadata[RECORD]}")
    return found, list(figures_differ(drawn, figures, strict=True)) if found else []


def runs_of(path: Path) -> set[str]:
    """The folders of runs/ that a notebook's code names."""
    code = (cell.source for cell in read_notebook(path).cells if cell.cell_type == "code")
    return set(_RUN.findall("\n".join(code)))


def in_order(paths: list[Path]) -> list[Path]:
    """The order to start notebooks in: what makes a run that others find first, those others last.

    Of several, the longest go first, so that none is left alone at the end.
    """
    runs = {path: runs_of(path) for path in paths}
    makers, finders = [], []
    for i, path in enumerate(sorted(paths)):
        shared = {run for run in runs[path] if sum(run in others for others in runs.values()) > 1}
        earlier = set().union(*(runs[other] for other in sorted(paths)[:i]))
        if shared:
            (finders if shared & earlier else makers).append(path)
    alone = [path for path in paths if path not in makers and path not in finders]
    longest_first = (sorted(group, key=lambda path: -SECONDS.get(path.stem, 0)) for group in (alone, finders))
    return [*makers, *itertools.chain(*longest_first)]


def _dumps(nb: nbformat.NotebookNode) -> str:
    return nbformat.writes(nb).rstrip("\n") + "\n"


def _write(nb: nbformat.NotebookNode, path: Path) -> None:
    text = _dumps(nb)
    if path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def main(argv: list[str] | None = None) -> int:
    """Run all notebooks, or those named; student editions, whose cells stay empty, only to check that they run.

    Where the new outputs and figures agree with the committed ones (CONTRIBUTING.md, "Notebooks"), the committed files
    stay. Exit status: 0 all well, 1 a notebook failed or does not agree.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.notebooks", description=main.__doc__)
    parser.add_argument("notebooks", nargs="*", help="default: notebooks/*.ipynb")
    parser.add_argument("--check", action="store_true", help="execute, compare with what is committed, write nothing")
    parser.add_argument("--fresh", action="store_true", help="write all anew, also what agrees with the committed")
    parser.add_argument("--timeout", type=int, default=600, help="seconds per cell (default 600)")
    parser.add_argument("--jobs", type=int, help="how many run at a time (default: one per core and thread, at most 4)")
    args = parser.parse_args(argv)
    found = (p for p in sorted(Path("notebooks").glob("*.ipynb")) if args.check or not is_student(p))
    paths = [Path(p) for p in args.notebooks] or list(found)
    if not paths or not all(p.is_file() for p in paths):
        missing = ", ".join(str(p) for p in paths if not p.is_file()) or "notebooks/*.ipynb"
        print(f"no such notebook: {missing}; run this in the repository's root or name the files", file=sys.stderr)
        return 1
    bad, drawn = 0, set()
    with (
        tempfile.TemporaryDirectory(prefix="emolab-figures-") as scratch,
        ThreadPoolExecutor(args.jobs or _jobs()) as pool,
    ):

        def run(path: Path) -> tuple[Path, nbformat.NotebookNode | None, list[str], float]:
            start = time.perf_counter()
            try:
                nb = run_notebook(path, figures=Path(scratch, path.stem), timeout=args.timeout)
                found = problems(nb)
            except EmolabError as error:
                nb, found = None, [str(error)]
            return path, nb, found, time.perf_counter() - start

        for i, done in enumerate(as_completed([pool.submit(run, path) for path in in_order(paths)]), 1):
            path, nb, found, seconds = done.result()
            new, own = [], Path(scratch, path.stem)
            if nb is not None and not is_student(path):
                drawn |= set(read_manifest(own))
                new, replaced = differences(path, nb, own, figures_directory())
                if args.check:
                    found, new = found + new, []
                elif any("stderr" not in line for line in found):  # a warning alone is no reason to lose the run
                    found.append("not written")
                elif new or args.fresh:
                    _write(nb, path)
                    adopt_figures(read_manifest(own) if args.fresh else replaced, own)
            bad += bool(found)
            state = "FAILED" if found else "ok, changed" if new else "ok"
            print(f"[{i}/{len(paths)}] {path.name:<42} {seconds:6.1f} s  {state}", flush=True)
            for line in found + new[:MAX_TOLD]:
                print("    " + line.replace("\n", "\n    "), flush=True)
    if args.check:
        ran = {path.name for path in paths}
        stale = [k for k, entry in read_manifest().items() if entry["notebook"] in ran and k not in drawn]
        found = [f"{k}: in the manifest, but its notebook draws it no more; delete it" for k in stale]
        found += gallery_problems()
        bad += len(found)
        print(*(f"    {line}\n" for line in found), sep="", end="", flush=True)
    elif read_manifest():
        write_gallery()
    print(f"{len(paths)} notebooks, {bad} problems" if bad else f"{len(paths)} notebooks, all well", flush=True)
    return int(bool(bad))


def _jobs() -> int:
    """One notebook per core, where each takes one thread; two that take both cores wait for each other."""
    cores = os.cpu_count() or 1
    return max(1, min(4, cores // int(os.environ.get("OMP_NUM_THREADS") or cores)))


if __name__ == "__main__":
    raise SystemExit(main())
