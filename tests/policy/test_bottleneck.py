from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.model import Stages
from tdx.policy.bottleneck import ENOUGH, NAMES, name_bottleneck

SECONDS = st.floats(0, 1e6)
STAGES = st.builds(Stages, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS)
WITH_SENDER = set(NAMES) - {"sender or network"}


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (Stages(read=8, hash=1, send=1), Stages(receive=9, hash=1, write=2), "sender disk"),
        (Stages(read=1, hash=8, send=1), Stages(receive=9, hash=1, write=2), "CPU"),
        (Stages(read=1, hash=1, send=8), Stages(receive=9, hash=1, write=2), "network"),
        (Stages(read=1, hash=1, send=8), Stages(receive=1, hash=1, write=8), "receiver disk"),
        (Stages(read=1, hash=1, send=8), Stages(receive=4, hash=1, write=3, sync=3), "receiver disk"),
        (Stages(read=1, hash=1, send=8), Stages(receive=1, hash=8, write=2), "CPU"),
    ],
    ids=[
        "source",
        "hashing here",
        "link",
        "disk there",
        "syncs there",
        "hashing there",
    ],
)
def test_the_stage_that_does_not_wait_is_the_bottleneck(ours: Stages, theirs: Stages, name: str) -> None:
    assert name_bottleneck(ours, theirs) == name


def test_a_slow_sender_is_named_before_the_receiver_has_said_anything() -> None:
    assert name_bottleneck(Stages(read=5, send=1), Stages()) == "sender disk"


def test_what_a_waiting_sender_waits_for_is_unknown_until_the_receiver_says() -> None:
    assert name_bottleneck(Stages(read=1, send=5), Stages()) is None


def test_nothing_is_named_from_a_few_milliseconds() -> None:
    assert name_bottleneck(Stages(read=ENOUGH / 3), Stages(write=ENOUGH / 3)) is None


@pytest.mark.parametrize(("rate", "limited"), [(100.0, True), (95.0, True), (50.0, False)])
def test_a_rate_at_its_limit_is_limited_by_it(rate: float, limited: bool) -> None:
    name = name_bottleneck(Stages(read=1, send=8), Stages(receive=9), rate=rate, limit=100.0)
    assert name == ("rate limit" if limited else "network")


def test_no_limit_limits_nothing() -> None:
    assert name_bottleneck(Stages(send=8), Stages(receive=9), rate=1e12, limit=None) == "network"


@given(STAGES, STAGES, st.integers(2, 1000))
def test_the_name_depends_on_proportions_only(ours: Stages, theirs: Stages, factor: int) -> None:
    name = name_bottleneck(ours, theirs)
    assert name is None or name in WITH_SENDER
    if name is not None:
        longer = [Stages(**{k: v * factor for k, v in each.as_dict().items()}) for each in (ours, theirs)]
        assert name_bottleneck(*longer) == name


def test_a_sender_that_waits_for_its_limit_says_so_whatever_it_is_now() -> None:
    assert name_bottleneck(Stages(read=1, send=1, limit=8), Stages(receive=9)) == "rate limit"
    assert name_bottleneck(Stages(read=8, send=1, limit=2), Stages(receive=9)) == "sender disk"


def test_a_receiver_that_keeps_to_its_limit_is_named_by_it() -> None:
    assert name_bottleneck(Stages(send=8), Stages(receive=1, write=1, limit=6)) == "rate limit"
    assert name_bottleneck(Stages(send=8), Stages(limit=6)) == "rate limit"
    assert name_bottleneck(Stages(send=8), Stages(receive=1, write=7, limit=6)) == "receiver disk"
    assert name_bottleneck(Stages(read=8, send=1), Stages(limit=6)) == "sender disk"


def test_a_sync_at_the_end_that_takes_longer_than_all_the_sender_did_is_the_receivers_disk() -> None:
    quick = Stages(read=2, hash=1, send=1)
    assert name_bottleneck(quick, Stages(receive=3, write=1, sync=5)) == "receiver disk"
    assert name_bottleneck(quick, Stages(receive=3, write=1, sync=3)) == "sender disk"


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        (Stages(receive=5, hash=1, write=2), "sender or network"),
        (Stages(receive=2, hash=1, write=2, sync=1), "receiver disk"),
        (Stages(receive=2, hash=5, write=2), "CPU"),
        (Stages(receive=2, hash=1, write=2, limit=3), "rate limit"),
        (Stages(receive=ENOUGH / 3), None),
        (Stages(), None),
    ],
)
def test_without_a_word_from_the_sender_the_receivers_own_stages_tell(
    theirs: Stages, name: str | None
) -> None:
    for told in (None, Stages()):
        assert name_bottleneck(told, theirs) == name


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        (Stages(receive=0.01, limit=3), "rate limit"),
        (Stages(receive=0.01, write=3), "receiver disk"),
        (Stages(receive=0.01, hash=3), "CPU"),
        (Stages(receive=3, write=0.004), "network"),
    ],
)
def test_what_goes_on_when_all_that_is_sent_lies_in_buffers_is_what_the_transfer_waits_for(
    theirs: Stages, name: str
) -> None:
    assert name_bottleneck(Stages(read=0.006, hash=0.001, send=0.004), theirs) == name
