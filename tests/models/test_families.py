"""Every check on every family, against the table in docs/families.md (which `python -m tests.families` writes)."""

import pytest

from tests.families import FAMILIES, Case, save
from tests.family_checks import CHECKS
from tests.family_docs import NOTES, read

TABLE = read()
# Reasoning that a template cannot switch off is closed, and told (tests/answers/test_writing.py).
pytestmark = pytest.mark.filterwarnings("ignore:this model.s template ends in")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    return Case(request.param, save(request.param, tmp_path_factory.mktemp("family")))


@pytest.mark.parametrize("check", [pytest.param(c, marks=pytest.mark.slow) if c == "bfloat16" else c for c in CHECKS])
def test_family(case, check):
    assert CHECKS[check](case) == TABLE[case.name][check]


def test_the_page_has_every_family_check_and_note():
    assert list(TABLE) == list(FAMILIES) and all(list(row) == list(CHECKS) for row in TABLE.values())
    assert {mark for row in TABLE.values() for mark in row.values()} == {"yes", *NOTES}
