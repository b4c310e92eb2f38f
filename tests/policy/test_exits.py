"""One exit code for several files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import leaves
from tdx.policy.exits import PRECEDENCE, worst


def test_no_files_and_good_files_are_success() -> None:
    assert worst([]) == 0
    assert worst(iter([0, 0])) == 0


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 75], 75), ([75, 69], 69), ([75, 66, 0], 66), ([66, 65], 65), ([65, 77, 75], 77)]
)
def test_what_needs_a_person_outranks_what_the_next_run_mends(codes: list[int], code: int) -> None:
    assert worst(codes) == code


def test_every_exit_code_of_the_error_tree_has_its_rank() -> None:
    assert {error.exit_code for error in leaves()} | {0} == set(PRECEDENCE)
    assert len(set(PRECEDENCE)) == len(PRECEDENCE)


def test_an_unknown_code_outranks_known_ones() -> None:
    assert worst([77, 1, 0]) == 1


@given(st.lists(st.sampled_from(PRECEDENCE), min_size=1))
def test_the_order_of_the_files_does_not_matter(codes: list[int]) -> None:
    assert worst(codes) == worst(sorted(codes)) == worst(sorted(codes, reverse=True))
    assert worst(codes) in codes
