"""The specification of an upload, as it lies on disk."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.model import Claim, Conflict, FileName, Owner, Span, UploadSpec
from tdx.store import meta

SPECS = st.builds(
    UploadSpec,
    owner=st.text().map(Owner),
    name=st.text(min_size=1).map(FileName),
    length=st.none() | st.integers(0, 2**63 - 1),
    extent_size=st.sampled_from([4 << 20, 64 << 20]),
    conflict=st.sampled_from(Conflict),
    source_id=st.none() | st.text(),
    fingerprint=st.none() | st.text(),
    mtime_ns=st.none() | st.integers(-(2**63), 2**63 - 1),
    mode=st.none() | st.integers(0, 0o777),
    holes=st.lists(st.integers(0, 100).map(lambda at: Span(at, at + 1))).map(tuple),
    key=st.none() | st.text(),
    expires_after=st.floats(0, 1e9),
    by_name=st.booleans(),
    claims=st.lists(st.builds(Claim, st.sampled_from(["sha-256", "xxh3-128"]), st.binary())).map(tuple),
    sparse=st.booleans(),
)


@given(SPECS)
def test_it_is_read_as_it_was_written(spec: UploadSpec) -> None:
    assert meta.decode(meta.encode(spec)) == spec


def test_one_that_knows_nothing_of_digests_has_none() -> None:
    spec = UploadSpec(Owner("me"), FileName("f"), 10, 4 << 20)
    document = json.loads(meta.encode(spec))
    del document["claims"]
    assert meta.decode(json.dumps(document).encode()) == spec


def test_one_that_knows_nothing_of_sparse_files_is_none() -> None:
    spec = UploadSpec(Owner("me"), FileName("f"), 10, 4 << 20)
    document = json.loads(meta.encode(spec))
    del document["sparse"]
    assert meta.decode(json.dumps(document).encode()) == spec


@pytest.mark.parametrize("claims", [5, [5], [["sha-256"]], [["sha-256", "xyz"]], [["sha-256", 5]]])
def test_digests_that_make_no_sense_are_no_meta(claims: object) -> None:
    document = json.loads(meta.encode(UploadSpec(Owner("me"), FileName("f"), 10, 4 << 20)))
    with pytest.raises(ValueError, match=r"\w"):
        meta.decode(json.dumps({**document, "claims": claims}).encode())
