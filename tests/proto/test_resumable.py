"""The fields of Resumable Uploads for HTTP, in each of its interop versions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import ProtocolError
from tdx.proto.head import Headers
from tdx.proto.resumable import (
    VERSIONS,
    Dialect,
    dialect_of,
    format_limit,
    is_partial_upload,
    item,
    parse_amount,
)

ALL = [Dialect(None), *map(Dialect, VERSIONS)]


def says(dialect: Dialect, fields: Mapping[str, str]) -> bool | None:
    return dialect.complete(Headers(fields.items()).get)


@pytest.mark.parametrize("version", [3, 4, 5, 6, 7, 8, 9])
def test_a_version_that_is_spoken_is_known(version: int) -> None:
    assert dialect_of(str(version)) == dialect_of(f"{version};a=b") == Dialect(version)


@pytest.mark.parametrize("stated", [None, "", "2", "10", "-3", "8.0", "?1", "eight", "8, 8", "9" * 30])
def test_any_other_is_as_none(stated: str | None) -> None:
    assert dialect_of(stated) == Dialect(None)


@given(st.text(max_size=40))
def test_no_value_of_the_version_field_is_an_error(stated: str) -> None:
    assert dialect_of(stated).version in {None, *VERSIONS}


@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize("done", [True, False])
def test_completeness_is_read_as_it_is_written(dialect: Dialect, done: bool) -> None:
    assert says(dialect, dict([dialect.completeness(done)])) is done


def test_the_oldest_version_says_what_is_missing() -> None:
    assert Dialect(3).completeness(done=True) == ("Upload-Incomplete", "?0")
    assert Dialect(4).completeness(done=True) == ("Upload-Complete", "?1")


def test_where_nothing_is_said_only_the_oldest_version_means_the_whole() -> None:
    assert [says(dialect, {}) for dialect in ALL] == [None, True, *([None] * 6)]


@pytest.mark.parametrize("value", ["", "1", "true", "?2", "?", "?1, ?0", "?1x"])
def test_a_completeness_that_cannot_be_read_is_refused_rather_than_guessed(value: str) -> None:
    with pytest.raises(ProtocolError):
        says(Dialect(8), {"Upload-Complete": value})
    with pytest.raises(ProtocolError):
        says(Dialect(3), {"Upload-Incomplete": value})


@given(st.integers(0, 2**63 - 1), st.sampled_from(["", ";a", "; a=1", ';a="b";c']))
def test_amounts_may_have_parameters_which_mean_nothing(amount: int, parameters: str) -> None:
    assert parse_amount(Headers([("Upload-Offset", f"{amount}{parameters}")]).get, "upload-offset") == amount


@pytest.mark.parametrize("value", ["", "-1", "1.0", "0x10", "1 2", "?1", str(2**63), "1, 2"])
def test_an_amount_that_is_no_byte_count_is_refused(value: str) -> None:
    with pytest.raises(ProtocolError):
        parse_amount(Headers([("Upload-Length", value)]).get, "upload-length")


@given(st.text(max_size=60))
def test_what_stands_before_the_parameters_is_the_item(value: str) -> None:
    assert value.startswith(item(value))
    assert ";" not in item(value)


def test_what_each_version_asks_for() -> None:
    assert [dialect.version for dialect in ALL if not dialect.needs_type] == [3, 4, 5]
    assert [dialect.version for dialect in ALL if dialect.ends_at_length] == [3, 4, 5, 6]
    assert [dialect.appended for dialect in ALL] == [204, 201, 201, 201, 204, 204, 204, 204]


@pytest.mark.parametrize(
    ("content_type", "is_one"),
    [
        ("application/partial-upload", True),
        ("Application/Partial-Upload; x=y", True),
        ("application/partial-uploads", False),
        ("application/octet-stream", False),
        ("", False),
        (None, False),
    ],
)
def test_the_media_type_of_an_append(content_type: str | None, is_one: bool) -> None:
    assert is_partial_upload(content_type) is is_one


def test_a_limit_is_a_dictionary() -> None:
    assert format_limit(10, 86400.0) == ("Upload-Limit", "max-size=10, max-age=86400")
    assert format_limit(2**46, None) == ("Upload-Limit", "max-size=70368744177664")
