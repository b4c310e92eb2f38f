"""Limits on connections and bodies."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import Busy
from tdx.model import Owner, UploadId
from tdx.policy.admission import Admission, Limits

ANNA, BERT = Owner("local:1000"), Owner("tailscale:n1")
ONE, TWO = UploadId("1" * 32), UploadId("2" * 32)


def test_connections_are_limited_in_all() -> None:
    admission = Admission(Limits(max_connections=2))
    admission.connect(1)
    admission.connect(2)
    with pytest.raises(Busy, match="2 connections"):
        admission.connect(3)
    admission.leave(1)
    admission.connect(3)
    assert admission.connections == 2


def test_connections_are_limited_by_owner() -> None:
    admission = Admission(Limits(max_connections_per_owner=1))
    for connection in (1, 2, 3):
        admission.connect(connection)
    admission.identified(1, ANNA)
    with pytest.raises(Busy, match="local:1000"):
        admission.identified(2, ANNA)
    admission.identified(2, BERT)
    admission.leave(1)
    admission.identified(3, ANNA)


def test_being_identified_again_counts_once() -> None:
    admission = Admission(Limits(max_connections_per_owner=1))
    admission.connect(1)
    admission.connect(2)
    for _ in range(5):
        admission.identified(1, ANNA)
    admission.identified(1, BERT)
    admission.identified(2, ANNA)
    with pytest.raises(Busy):
        admission.identified(1, ANNA)


def test_bodies_are_limited_by_upload() -> None:
    admission = Admission(Limits(streams_per_upload=1))
    for connection in (1, 2, 3):
        admission.connect(connection)
    admission.begin_body(1, ONE)
    with pytest.raises(Busy, match="1 streams"):
        admission.begin_body(2, ONE)
    admission.begin_body(2, TWO)
    assert admission.bodies == 2
    admission.end_body(1)
    admission.end_body(1)
    admission.begin_body(3, ONE)


def test_a_connection_that_leaves_takes_its_body_along() -> None:
    admission = Admission(Limits(streams_per_upload=1))
    admission.connect(1)
    admission.begin_body(1, ONE)
    admission.leave(1)
    admission.leave(1)
    assert (admission.connections, admission.bodies) == (0, 0)


def test_limits_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().max_connections = 1  # type: ignore[misc]


@given(
    st.lists(
        st.tuples(st.sampled_from("cilbe"), st.integers(0, 6), st.sampled_from([ANNA, BERT])), max_size=60
    )
)
def test_no_limit_is_ever_exceeded_and_everything_is_given_back(
    steps: list[tuple[str, int, Owner]],
) -> None:
    admission = Admission(Limits(max_connections=4, max_connections_per_owner=2, streams_per_upload=2))
    connected: dict[int, Owner | None] = {}
    bodies: set[int] = set()
    for action, connection, owner in steps:
        try:
            if action == "c" and connection not in connected:
                admission.connect(connection)
                connected[connection] = None
            elif action == "i" and connection in connected:
                admission.identified(connection, owner)
                connected[connection] = owner
            elif action == "b" and connection in connected and connection not in bodies:
                admission.begin_body(connection, ONE)
                bodies.add(connection)
            elif action == "e":
                admission.end_body(connection)
                bodies.discard(connection)
            elif action == "l":
                admission.leave(connection)
                connected.pop(connection, None)
                bodies.discard(connection)
        except Busy:
            pass
        assert admission.connections == len(connected) <= 4
        assert admission.bodies == len(bodies) <= 2
        assert all(list(connected.values()).count(each) <= 2 for each in (ANNA, BERT))
    for connection in range(7):
        admission.leave(connection)
    for connection in range(2):
        admission.connect(connection)
        admission.identified(connection, ANNA)
        admission.begin_body(connection, ONE)
