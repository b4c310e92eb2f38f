from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.model import Stages
from tdx.proto.stages import MOST_SECONDS, format_stages, parse_stages, stages_of

SECONDS = st.floats(0, MOST_SECONDS)
STAGES = st.builds(Stages, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS)


def test_the_stages_that_took_time_are_told_to_a_millisecond() -> None:
    assert format_stages(Stages(read=0.31, send=1.40449, sync=0.0004)) == "read=0.310, send=1.404"
    assert format_stages(Stages()) == ""


@given(STAGES)
def test_what_is_told_is_understood(stages: Stages) -> None:
    understood = parse_stages(format_stages(stages)) or Stages()
    for stage, seconds in stages.as_dict().items():
        assert understood.as_dict()[stage] == pytest.approx(seconds, abs=0.00051)


@pytest.mark.parametrize(
    ("value", "understood"),
    [
        ("read=1", Stages(read=1)),
        (" read=1.5 ,\tsend=2;a=b", Stages(read=1.5, send=2)),
        ("read=1, read=2", Stages(read=2)),
        ("rest=3, hash=0.5", Stages(hash=0.5)),
        ("read=-1, limit=1", Stages(limit=1)),
        ("read=1.2345, send=1", Stages(send=1)),
        ("read=999999999999, send=1", Stages(send=1)),
        ("read=1e9, send=1", Stages(send=1)),
        ("read, send=1", Stages(send=1)),
        ("read=nan", None),
        ("as_dict=1", None),
        ("__slots__=1", None),
        ("", None),
        (",,,", None),
        ("read=\u0661", None),
        ("x=1, " * 500 + "read=1", None),
    ],
)
def test_what_makes_no_sense_is_passed_over(value: str, understood: Stages | None) -> None:
    assert parse_stages(value) == understood


@given(st.text())
def test_nothing_that_is_told_is_an_error(value: str) -> None:
    parse_stages(value)


def test_of_a_json_object_only_times_of_known_stages_count() -> None:
    said = {"read": 1, "hash": "2", "send": -1, "write": float("nan"), "sync": 1e300, "rest": 1, "limit": 0.5}
    assert stages_of(said) == Stages(read=1, limit=0.5)
    assert stages_of([1]) == stages_of(None) == Stages()
