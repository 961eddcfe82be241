"""Bad input on the command line, and the kinds of errors that a program can catch."""

from __future__ import annotations

import json
import re

import pytest

import emolab
from emolab import EmotionVectors
from emolab.base.errors import EmolabError, FileError, MismatchError
from emolab.studies.cli import main
from tests.refusing import readable
from tests.test_refusals_runs import extract, foreign_responses

COMMANDS = {
    "steer --model {llama} --vectors {absent} --set joy=1 hello": "no vectors .*bundled are smollm2",
    "steer --model {llama} --vectors {vectors} --set joy hello": "--set 'joy' is not EMOTION=NUMBER",
    "steer --model {llama} --vectors {vectors} --set joy=nan hello": "dose of 'joy' is nan",
    "steer --model {llama} --vectors {vectors} --set jo=1 hello": "unknown emotion 'jo'",
    "steer --model {llama} --vectors {vectors} --set joy=1 --layers some hello": "--layers 'some'",
    "steer --model {llama} --vectors {vectors} --set joy=1 --layers 9 hello": "unknown layer 9",
    "steer --model {llama} --vectors {vectors} --set joy=1 --site x hello": "unknown site 'x'",
    "steer --model {llama} --vectors {vectors} --set joy=1 --max-new-tokens 0 hello": "max_new_tokens is 0",
    "steer --model {llama} --vectors {foreign} --set joy=1 hello": "another model",
    "steer --model {absent} --vectors {vectors} --set joy=1 hello": "no model",
    "steer --model {llama} --dtype float33 --vectors {vectors} --set joy=1 hello": "unknown dtype 'float33'",
    "extract --model {llama} --queries {absent} --out {out}": "no queries at",
    "extract --model {llama} --queries {queries} --split test --out {out}": "--split 'test'",
    "sweep --model {llama} --vectors {vectors} --queries {queries} --alphas nan --out {out}": "nan",
    "sweep --model {llama} --vectors {vectors} --queries {queries} --controls x --out {out}": "unknown control 'x'",
    "sweep --model {llama} --vectors {vectors} --queries {queries} --emotions x --out {out}": "unknown emotion 'x'",
    "study --model {llama} --queries {queries} --out {out}": "too few",
    "study --model {llama} --queries {queries} --n-queries 0 0 0 --out {out}": "n_queries",
    "score --model {llama} --out {absent}": "is missing or damaged",
    "figures --out {absent}": "is missing or damaged",
    "info {absent}": "no file|missing",
    "info {queries}": "damaged or no safetensors file",
}


@pytest.fixture(scope="module")
def places(world, tiny_llama_dir):
    world.vectors.save(world.folder / "ev.safetensors")
    world.foreign.save(world.folder / "foreign.safetensors")
    (world.folder / "queries.json").write_text(json.dumps(["tell me about the park", "tell me about the sea"]))
    files = {"vectors": "ev.safetensors", "foreign": "foreign.safetensors", "queries": "queries.json"}
    files |= {"absent": "absent", "out": "out"}
    return {name: world.folder / file for name, file in files.items()} | {"llama": tiny_llama_dir}


@pytest.mark.parametrize(("command", "pattern"), COMMANDS.items())
def test_a_command_ends_with_one_line(places, capsys, command, pattern):
    assert main(command.format(**places).split()) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("emolab: ") and "Traceback" not in "".join(told)
    readable(told[-1])
    assert re.search(pattern, told[-1]), told[-1]


def test_files_and_mismatches_can_be_caught_by_kind(world, tmp_path):
    (tmp_path / "ev.safetensors").write_bytes(b"\x00" * 40)
    for path in ("ev.safetensors", "absent.safetensors"):
        with pytest.raises(FileError):
            EmotionVectors.load(tmp_path / path)
    with pytest.raises(MismatchError):
        world.generate(steering=emolab.Steering(world.foreign, {"joy": 1.0}))
    with pytest.raises(MismatchError):
        extract(world, foreign_responses(world))
    assert issubclass(FileError, EmolabError) and issubclass(EmolabError, ValueError)
