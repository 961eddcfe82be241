"""Every check on every family, against the table in docs/families.md (which `python -m tests.families` writes)."""

import pytest

from tests.families import Case, save
from tests.family_checks import CHECKS
from tests.family_docs import NOTES, read
from tests.family_list import FAMILIES, MORE

TABLE = read()
QUICK = ("vectors = hidden states", "steering local")  # of MORE, the other checks are slow
# Reasoning that a template cannot switch off is closed, and told (tests/answers/test_writing.py).
pytestmark = [
    pytest.mark.filterwarnings("ignore:this model.s template ends in"),
    pytest.mark.filterwarnings("ignore:.* in layers .*; means and vectors are zero there"),  # of hybrids
]


def _pairs():
    for name in FAMILIES:
        for check in CHECKS:
            slow = check == "bfloat16" or (name in MORE and check not in QUICK)
            yield pytest.param(name, check, marks=[pytest.mark.slow] if slow else [], id=f"{name}: {check}")


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    return Case(request.param, save(request.param, tmp_path_factory.mktemp("family")))


@pytest.mark.parametrize(("case", "check"), list(_pairs()), indirect=["case"])
def test_family(case, check):
    assert CHECKS[check](case) == TABLE[case.name][check]


def test_the_page_has_every_family_check_and_note():
    assert list(TABLE) == list(FAMILIES) and all(list(row) == list(CHECKS) for row in TABLE.values())
    assert {mark for row in TABLE.values() for mark in row.values()} == {"yes", *NOTES}
