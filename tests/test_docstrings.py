"""Examples in docstrings run, on a small study of the default model; what they print is compared where it is given."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

import emolab
from tests import docs_setup

# Texts of a few tokens, and those of a toy, may hold nothing to read.
pytestmark = pytest.mark.filterwarnings("ignore:judge .* cannot read")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NOT_RUN = {
    "emolab.experiments.shares": "sweeps over layers and mixtures; tests/experiments/test_shares.py",
    "emolab.studies.pipeline": "a whole study takes minutes; tests/studies/test_pipeline.py runs a small one",
    "emolab.heads.effects": "many heads and runs; notebook 03 runs it, tests/heads/test_effects.py small ones",
    "emolab.comparisons.compare": "six methods; tests/comparisons/test_baselines.py runs small ones",
    "emolab.comparisons.claim_runs": "hundreds of texts; tests/comparisons/test_claim_runs.py runs small ones",
    "emolab.comparisons.lora": "trains adapters; tests/comparisons/test_lora.py trains tiny ones",
    "emolab.comparisons.methods": "methods of comparison; tests/comparisons/test_baselines.py calls them",
    "emolab.comparisons.comparison": "as emolab.comparisons.compare",
    "emolab.comparisons.asked": "machinery of the comparison; tests/comparisons/test_baselines.py",
    "emolab.comparisons.steered_runs": "machinery of the claims; tests/comparisons/test_claim_runs.py",
    "emolab.comparisons.claims": "tables of the claims' runs; tests/comparisons/test_claims.py makes them by hand",
    "emolab.comparisons.claim_fits": "as emolab.comparisons.claims",
    "emolab.plot.comparisons": "claims, and tables of compare_methods; tests/plot/made.py makes them by hand",
    "emolab.plot.panels": "parts of a figure function; tests/plot",
    "emolab.plot.marks": "as emolab.plot.panels",
    "emolab.plot.overview": "umaps of a study; tests/plot/made.py makes its tables by hand",
    "emolab.comparisons.damage": "texts and adapters of a comparison; tests/comparisons/test_damage.py",
    "emolab.models.workers": "worker processes, and ports; tests/models/test_cluster.py runs the same on small studies",
    "emolab.plot.heads": "head tests; notebook 03 runs them, tests/plot/made.py makes their tables by hand",
    "emolab.heads.curves": "as emolab.heads.effects",
    "emolab.heads.neurons": "as emolab.heads.effects; tests/heads/test_neurons.py",
    "emolab.heads.sublayers": "as emolab.heads.neurons",
    "emolab.steering.shifts": "machinery of emolab.heads.neurons",
    "emolab.plot.neurons": "as emolab.plot.heads",
    "emolab.say": "tables of experiments; tests/say makes them by hand",
    "emolab.say.choices": "as emolab.say",
    "emolab.say.heads": "as emolab.say",
    "emolab.say.steering": "as emolab.say",
    "emolab.say.vectors": "as emolab.say",
    "emolab.heads.measures": "as emolab.heads.patching",
    "emolab.heads.patching": "machinery of the head tests; tests/heads/test_runs.py",
}
SLOW = (
    "emolab", "emolab.geometry.projections", "emolab.experiments.sweeps",
    "emolab.heads.head_vectors", "emolab.experiments.parts",
    "emolab.plot.responses", "emolab.plot.steering", "emolab.widgets",
    "emolab.widgets.heads", "emolab.widgets.chat", "emolab.widgets.conversation", "emolab.experiments.passages",
    "emolab.judges.calibration", "emolab.plot.reading", "emolab.studies.analysis", "emolab.experiments.wordings",
    "emolab.plot.vectors", "emolab.steering.settings", "emolab.experiments.dose_response",
    "emolab.studies.selfcheck", "emolab.vectors.activations", "emolab.experiments.breaking",
    "emolab.experiments.sources",
)  # fmt: skip


def few(study: dict) -> dict:
    """Answers to two of the queries, for examples that read them all again."""
    responses, queries = study["responses"], study["train"]["query_id"].head(2)
    return {"responses": responses[responses["query_id"].isin(queries)], "table": study["table"].head(12)}


# Names that mean something else there.
OWN = {
    **dict.fromkeys(
        (
            "emolab.base.errors", "emolab.heads.attention", "emolab.judges.scoring", "emolab.plot.side_by_side",
            "emolab.plot.text",
            "emolab.vectors.token_rule", "emolab.vectors.vectors",
        ),
        few,
    ),
    **dict.fromkeys(
        ("emolab.experiments.sweeps", "emolab.experiments.parts", "emolab.plot.steering"), lambda s: docs_setup.toy()
    ),
    "emolab.heads.head_vectors": lambda s: {"queries": emolab.load_queries()},
    "emolab.answers.generation": lambda s: {
        e: emolab.Steering(s["vectors"], {e: 2.0}, site="attn") for e in ("joy", "fear")
    },
    "emolab.experiments.sources": lambda s: {"of_frames": s["scored"]},
    "emolab.vectors.exchange": lambda s: {e: s["vectors"].get(emotion=e) for e in ("joy", "fear")},
    "emolab.base.stats": lambda s: {
        "table": s["scored"].pivot_table(index="query_id", columns=["control", "alpha"], values="p_joy"),
        "differences": s["scored"].groupby("query_id")["p_joy"].mean() - 0.1,
    },
}  # fmt: skip


def names_of(module: ModuleType) -> dict[str, Any]:
    """What stands in the module; of a room without its files, one of which is called `vectors`."""
    return {name: value for name, value in vars(module).items() if f"{module.__name__}.{name}" not in sys.modules}


class Checker(doctest.OutputChecker):
    """An example without output given has only to run."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def with_examples() -> dict[str, list[doctest.DocTest]]:
    names = ["emolab", *(m.name for m in pkgutil.walk_packages(emolab.__path__, "emolab."))]
    finder, found = doctest.DocTestFinder(), {}
    for name in sorted(name for name in names if not name.endswith("__main__")):
        tests = [test for test in finder.find(importlib.import_module(name), globs={}) if test.examples]
        tests = [test for test in tests if name not in NOT_RUN]
        if any(not example.options.get(doctest.SKIP) for test in tests for example in test.examples):
            found[name] = tests
    return found


EXAMPLES = with_examples()
MODULES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXAMPLES]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMOLAB_FIGURES", str(tmp_path))
    docs_setup.files(tmp_path)
    docs_setup.keep_short(monkeypatch)
    own = OWN.get(name, lambda study: {})(docs_setup.study())
    runner, said = doctest.DocTestRunner(Checker(), optionflags=FLAGS, verbose=False), []
    with np.printoptions(precision=3, suppress=True):
        for test in EXAMPLES[name]:
            source = "".join(example.source for example in test.examples)
            test.globs = docs_setup.namespace(source) | own | names_of(importlib.import_module(name))
            runner.run(test, out=said.append)
    plt.close("all")
    assert not runner.failures, "".join(said)


def test_lists_name_what_there_is():
    names = {m.name for m in pkgutil.walk_packages(emolab.__path__, "emolab.")} | {"emolab"}
    assert set(NOT_RUN) <= names
    assert set(SLOW) <= set(EXAMPLES), "without an example that runs"


def test_an_example_that_fails_is_noticed():
    for source in (">>> 1 / 0", ">>> 1 + 1\n3"):
        test = doctest.DocTestParser().get_doctest(source, {}, "made", None, 0)
        runner = doctest.DocTestRunner(Checker(), optionflags=FLAGS, verbose=False)
        runner.run(test, out=lambda text: None)
        assert runner.failures == 1
