"""Limits on connections."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import Busy
from tdx.model import Owner
from tdx.policy.admission import Admission, Limits

ANNA, BERT = Owner("local:1000"), Owner("tailscale:n1")


def test_connections_are_limited_in_all() -> None:
    admission = Admission(Limits(max_connections=2))
    admission.connect(1)
    admission.connect(2)
    with pytest.raises(Busy, match="2 connections"):
        admission.connect(3)
    admission.leave(1)
    admission.connect(3)
    with pytest.raises(Busy):
        admission.connect(4)


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


def test_strangers_do_not_take_the_places_of_those_who_are_known() -> None:
    admission = Admission(Limits(max_connections=4, max_strangers=1))
    for connection in (1, 2, 3):
        admission.connect(connection)
    admission.unwelcome(1)
    with pytest.raises(Busy, match="1 connections are open of callers who are not known"):
        admission.unwelcome(2)
    admission.leave(2)
    admission.identified(3, ANNA)
    admission.connect(4)
    admission.identified(1, BERT)  # over TLS, with its first request
    admission.unwelcome(4)
    admission.leave(4)
    admission.connect(5)
    admission.unwelcome(5)


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


def test_a_connection_may_leave_twice() -> None:
    admission = Admission(Limits(max_connections=2))
    admission.connect(1)
    admission.connect(2)
    admission.leave(1)
    admission.leave(1)
    admission.connect(3)
    with pytest.raises(Busy):
        admission.connect(4)


def test_limits_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().max_connections = 1  # type: ignore[misc]


@given(
    st.lists(
        st.tuples(st.sampled_from("cuil"), st.integers(0, 6), st.sampled_from([ANNA, BERT])), max_size=60
    )
)
def test_no_limit_is_ever_exceeded_and_everything_is_given_back(
    steps: list[tuple[str, int, Owner]],
) -> None:
    admission = Admission(Limits(max_connections=4, max_connections_per_owner=2, max_strangers=1))
    connected: dict[int, Owner | None] = {}
    for action, connection, owner in steps:
        try:
            if action == "c" and connection not in connected:
                admission.connect(connection)
                connected[connection] = None
            elif action == "u" and connected.get(connection, owner) is None:
                admission.unwelcome(connection)
            elif action == "i" and connection in connected:
                admission.identified(connection, owner)
                connected[connection] = owner
            elif action == "l":
                admission.leave(connection)
                connected.pop(connection, None)
        except Busy:
            pass
        assert len(connected) <= 4
        assert all(list(connected.values()).count(each) <= 2 for each in (ANNA, BERT))
    for connection in range(7):
        admission.leave(connection)
    for connection in range(2):
        admission.connect(connection)
        admission.identified(connection, ANNA)
    admission.connect(2)
    admission.unwelcome(2)
