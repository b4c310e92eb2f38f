from __future__ import annotations

import json
from collections import Counter

import pytest

from tdx.errors import PROBLEM_PREFIX, ExtentsDiffer, NotFound, OffsetMismatch, TdxError, by_code, leaves

EXIT_CODES = {64, 65, 66, 68, 69, 73, 74, 75, 76, 77, 78}
"""What a failed command may end with; README.md and the exit codes of sysexits.h."""

# Another test module may have classes of its own below TdxError.
CLASSES = [cls for cls in leaves() if cls.__module__ == "tdx.errors"]


def example(cls: type[TdxError]) -> TdxError:
    if cls is OffsetMismatch:
        return OffsetMismatch("five", offset=5)
    if cls is ExtentsDiffer:
        return ExtentsDiffer("two", extents=[0, 2])
    return cls("what happened")


def test_no_two_errors_share_a_code() -> None:
    assert [code for code, count in Counter(cls.code for cls in CLASSES).items() if count > 1] == []


@pytest.mark.parametrize("cls", CLASSES)
class TestEveryError:
    def test_has_a_code_of_its_own_in_kebab_case(self, cls: type[TdxError]) -> None:
        assert "code" in vars(cls)
        assert cls.code.replace("-", "").isalpha()
        assert cls.code == cls.code.lower()

    def test_ends_a_command_with_a_documented_exit_code(self, cls: type[TdxError]) -> None:
        assert cls.exit_code in EXIT_CODES

    def test_is_answered_with_a_status_that_means_an_error(self, cls: type[TdxError]) -> None:
        assert 400 <= cls.status <= 599

    def test_is_documented(self, cls: type[TdxError]) -> None:
        assert vars(cls)["__doc__"].strip()

    def test_is_found_by_its_code(self, cls: type[TdxError]) -> None:
        assert by_code(cls.code) is cls

    def test_makes_a_problem_document(self, cls: type[TdxError]) -> None:
        error = example(cls)
        document = json.loads(json.dumps(error.problem()))
        assert document["type"] == error.problem_type == PROBLEM_PREFIX + cls.code
        assert document["status"] == cls.status
        assert document["detail"] == str(error) == error.message
        assert document["title"] == cls.code.replace("-", " ")


def test_an_error_that_a_retry_cannot_mend_never_says_try_again() -> None:
    temporary = {cls.code for cls in CLASSES if cls.exit_code == 75 and cls.permanent}
    assert temporary == {"superseded"}  # the newer run has taken over; repeating this one would cut it off


def test_details_are_members_of_the_problem_document() -> None:
    assert NotFound("gone", upload="abc").problem()["upload"] == "abc"
    assert OffsetMismatch("there", offset=7).problem()["offset"] == 7
    assert ExtentsDiffer("these", extents=[1, 3]).problem()["extents"] == [1, 3]


def test_a_code_of_a_later_version_is_nobodys() -> None:
    assert by_code("from-the-future") is None
