from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx import errors
from tdx.errors import (
    Busy,
    DigestMismatch,
    ExtentsDiffer,
    Forbidden,
    NoSpace,
    NotFound,
    OffsetMismatch,
    ProtocolError,
    StorageError,
    TdxError,
    TooLarge,
    UploadBusy,
)
from tdx.proto.problem import (
    COMPLETED_UPLOAD,
    INCONSISTENT_LENGTH,
    MAX_DOCUMENT,
    MAX_MESSAGE,
    MEDIA_TYPE,
    parse,
    render,
)

CLASSES = [cls for cls in errors.leaves() if cls.__module__ == "tdx.errors"]
PLAIN = [cls for cls in CLASSES if cls not in (OffsetMismatch, ExtentsDiffer)]


def document(**members: object) -> bytes:
    return json.dumps(members).encode()


def problem(code: str, **members: object) -> bytes:
    return document(type=errors.PROBLEM_PREFIX + code, **members)


@pytest.mark.parametrize("cls", PLAIN)
def test_an_error_arrives_as_what_it_was_raised_as(cls: type[TdxError]) -> None:
    status, body = render(cls("no room for “a b”", name="a b"))
    error = parse(status, MEDIA_TYPE, body)
    assert type(error) is cls
    assert error.message == "no room for “a b”"
    assert (status, json.loads(body)["status"]) == (cls.status, cls.status)


def test_an_offset_arrives() -> None:
    status, body = render(OffsetMismatch("not there", offset=4096))
    error = parse(status, MEDIA_TYPE, body)
    assert isinstance(error, OffsetMismatch)
    assert error.offset == 4096


def test_extents_arrive() -> None:
    error = parse(*with_type(ExtentsDiffer("these differ", extents=[0, 7, 9])))
    assert isinstance(error, ExtentsDiffer)
    assert error.extents == [0, 7, 9]


def with_type(error: TdxError) -> tuple[int, str, bytes]:
    status, body = render(error)
    return status, MEDIA_TYPE, body


def test_registered_problem_types_are_used_where_there_are_any() -> None:
    registered = "https://iana.org/assignments/http-problem-types#"
    mismatch = json.loads(render(OffsetMismatch("not there", offset=5))[1])
    assert mismatch["type"] == registered + "mismatching-upload-offset"
    assert mismatch["expected-offset"] == mismatch["offset"] == 5
    assert "provided-offset" not in mismatch
    both = json.loads(render(OffsetMismatch("not there", offset=5, provided=9))[1])
    assert (both["expected-offset"], both["provided-offset"]) == (5, 9)
    assert json.loads(render(DigestMismatch("differs"))[1])["type"] == registered + "digest-mismatched-values"
    assert registered + "inconsistent-upload-length" == INCONSISTENT_LENGTH


@pytest.mark.parametrize("registered", [INCONSISTENT_LENGTH, COMPLETED_UPLOAD])
def test_an_error_may_name_a_registered_type_itself(registered: str) -> None:
    status, body = render(ProtocolError("4 or 5?", type=registered))
    assert json.loads(body)["type"] == registered
    assert type(parse(status, MEDIA_TYPE, body)) is ProtocolError


def test_the_drafts_own_member_tells_the_offset_too() -> None:
    body = document(
        **{
            "type": "https://iana.org/assignments/http-problem-types#mismatching-upload-offset",
            "expected-offset": 3,
        }
    )
    error = parse(409, MEDIA_TYPE, body)
    assert isinstance(error, OffsetMismatch)
    assert error.offset == 3


def test_a_name_that_is_not_unicode_still_makes_a_document() -> None:
    body = render(NotFound("no file \udcff here"))[1]
    assert json.loads(body)["detail"] == "no file \udcff here"
    assert parse(404, MEDIA_TYPE, body).message == "no file \N{REPLACEMENT CHARACTER} here"


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, ProtocolError),
        (401, Forbidden),
        (403, Forbidden),
        (404, NotFound),
        (405, ProtocolError),
        (409, UploadBusy),
        (413, TooLarge),
        (418, ProtocolError),
        (500, StorageError),
        (502, StorageError),
        (503, Busy),
        (507, NoSpace),
        (599, StorageError),
        (302, ProtocolError),
    ],
)
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (None, b""),
        ("text/html", b"<h1>Bad Gateway</h1>"),
        ("text/plain", problem("superseded")),
        (MEDIA_TYPE, b""),
        (MEDIA_TYPE, b"{"),
        (MEDIA_TYPE, b"\xff\xfe\x00"),
        (MEDIA_TYPE, b"[]"),
        (MEDIA_TYPE, b"null"),
        (MEDIA_TYPE, b'"' + b"\\ud800" + b'"'),
        (MEDIA_TYPE, b"[" * 100_000),
        (MEDIA_TYPE, b'{"a":' * 100_000),
        (MEDIA_TYPE, b"1" * 10_000),
        (MEDIA_TYPE, b'{"type": NaN}'),
        (MEDIA_TYPE, document(type=5)),
        (MEDIA_TYPE, document(type="about:blank")),
        (MEDIA_TYPE, problem("from-the-future")),
        (MEDIA_TYPE, problem("superseded", padding="x" * MAX_DOCUMENT)),
    ],
    ids=range(17),
)
def test_what_has_no_type_that_we_know_means_what_its_status_says(
    status: int, cls: type[TdxError], content_type: str | None, body: bytes
) -> None:
    error = parse(status, content_type, body)
    assert type(error) is cls
    assert error.message == f"the other end answered {status}"


def test_the_largest_commit_may_differ_in_every_extent() -> None:
    status, body = render(ExtentsDiffer("all of them", extents=list(range(1 << 20))))
    error = parse(status, MEDIA_TYPE, body)
    assert isinstance(error, ExtentsDiffer)
    assert error.extents == list(range(1 << 20))


def test_the_media_type_may_have_parameters_and_any_case() -> None:
    error = parse(409, "Application/Problem+JSON ; charset=utf-8", problem("superseded"))
    assert type(error) is errors.Superseded


def test_the_text_of_an_unknown_problem_is_kept() -> None:
    error = parse(409, MEDIA_TYPE, problem("from-the-future", detail="later"))
    assert (type(error), error.message) == (UploadBusy, "later")


@pytest.mark.parametrize("detail", ["", None, 5, ["a"], {}])
def test_without_a_text_the_status_is_told(detail: object) -> None:
    assert parse(404, MEDIA_TYPE, problem("not-found", detail=detail)).message == "the other end answered 404"


def test_the_text_cannot_drive_a_terminal_or_flood_it() -> None:
    hostile = "a\x1b[2J\r\nb\x9b\u202e" + "x" * 10_000
    message = parse(404, MEDIA_TYPE, problem("not-found", detail=hostile)).message
    assert message.isprintable()
    assert message.startswith("a\N{REPLACEMENT CHARACTER}[2J")
    assert len(message) == MAX_MESSAGE


@pytest.mark.parametrize("offset", [None, -1, 2**63, 1.0, True, "5", [5], {}])
def test_an_offset_that_is_none_is_a_protocol_error(offset: object) -> None:
    assert type(parse(409, MEDIA_TYPE, problem("offset-mismatch", offset=offset))) is ProtocolError


@pytest.mark.parametrize(
    "extents", [None, [], {}, "0", 0, [-1], [1.0], [True], ["0"], [[0]], [1, 0], [1, 1], [0, None], [2**63]]
)
def test_extents_that_are_none_are_a_protocol_error(extents: object) -> None:
    assert type(parse(409, MEDIA_TYPE, problem("extents-differ", extents=extents))) is ProtocolError


@given(
    st.integers(400, 599),
    st.dictionaries(
        st.sampled_from(
            ["type", "detail", "offset", "extents", "status", "message", "self", "expected-offset"]
        ),
        st.recursive(
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(),
                st.text(),
                st.sampled_from([errors.PROBLEM_PREFIX + cls.code for cls in CLASSES]),
            ),
            lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
            max_leaves=6,
        ),
    ),
)
def test_whatever_the_document_says_an_error_comes_out(status: int, members: dict[str, object]) -> None:
    error = parse(status, MEDIA_TYPE, json.dumps(members).encode())
    assert isinstance(error, TdxError)
    assert error.message
    assert error.message.isprintable()
