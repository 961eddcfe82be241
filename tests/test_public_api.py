"""What `import emolab` gives, and that it is light."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import emolab


def test_importing_loads_nothing_heavy():
    heavy = ("torch", "transformers", "transformer_lens", "pandas", "numpy", "matplotlib", "sentence_transformers")
    code = (
        "import sys, emolab; dir(emolab); emolab.EMOTIONS; emolab.EmolabError\n"
        f"heavy = {heavy}\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "import emolab.studies.cli\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"] and not done.stderr, done


def test_every_public_name_resolves():
    assert emolab.__all__ == sorted(set(emolab.__all__)) == dir(emolab)
    for name in emolab.__all__:
        assert getattr(emolab, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'steer'; it has .*Steering"):
        emolab.steer  # noqa: B018
    for name in emolab.plot.__all__:
        assert getattr(emolab.plot, name) is not None, name


def test_the_names_of_the_contract_are_there():
    contract = (
        "load_model load_queries collect_responses responses_from_texts extract_vectors EmotionVectors Steering "
        "generate steered sweep score plot save_figure study"
    )
    assert set(contract.split()) <= set(emolab.__all__)


def test_public_functions_say_what_they_do_and_take_no_loose_arguments():
    for name in emolab.__all__:
        thing = getattr(emolab, name)
        if inspect.isfunction(thing):
            kinds = {p.kind for p in inspect.signature(thing).parameters.values()}
            shown = inspect.getdoc(thing) + inspect.getdoc(inspect.getmodule(thing))
            assert re.search(rf">>> .*\b{name}\(", shown), f"{name} has no example, nor has its module"
            assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, name
            assert inspect.signature(thing).return_annotation is not inspect.Signature.empty or name == "save_figure"


def test_library_takes_seeds():
    for name in ("study", "head_effects"):
        parameter = inspect.signature(getattr(emolab, name)).parameters["seed"]
        assert parameter.default == 0 and parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_texts_are_written_alike_everywhere():
    for name in ("collect_responses", "generate", "sweep", "choose_wording"):
        parameters = inspect.signature(getattr(emolab, name)).parameters
        assert parameters["writing"].default == emolab.Writing(), name
        assert not {"temperature", "top_p", "repetition_penalty"} & set(parameters), name
    compared = inspect.signature(emolab.comparisons.compare.compare_methods).parameters["writing"]
    assert compared.default == emolab.Writing() == emolab.Writing(0.0, 1.0, 1.1, 0)
    for name in emolab.__all__:
        function = getattr(emolab, name)
        parameters = inspect.signature(function).parameters if inspect.isfunction(function) else {}
        assert not {"progress", "client"} & set(parameters), f"{name}: emolab.set_progress and emolab.workers do that"
