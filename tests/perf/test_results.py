"""Results are read back as they were written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf import results
from perf.model import Outcome, Run, Series, Table, Target

FIGURES = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=20)
RUNS = st.builds(
    Run,
    FIGURES,
    FIGURES,
    FIGURES,
    st.none() | st.integers(0, 1 << 40),
    st.dictionaries(TEXTS, FIGURES, max_size=2),
)
SERIES = st.builds(Series, TEXTS, TEXTS, st.lists(RUNS, max_size=3).map(tuple), st.none() | TEXTS)
TABLES = st.builds(
    Table,
    TEXTS,
    st.integers(0, 1 << 40),
    st.integers(0, 10_000),
    st.dictionaries(TEXTS, TEXTS, max_size=2),
    st.lists(SERIES, max_size=2).map(tuple),
)
TARGETS = st.builds(
    Target,
    TEXTS,
    TEXTS,
    TEXTS,
    FIGURES,
    FIGURES,
    FIGURES,
    FIGURES,
    FIGURES,
    st.sampled_from(["lower", "higher"]),
)
OUTCOMES = st.builds(
    Outcome,
    TEXTS,
    TEXTS,
    st.lists(TEXTS, max_size=2).map(tuple),
    st.lists(TABLES, max_size=2).map(tuple),
    st.lists(TARGETS, max_size=2).map(tuple),
)
EMPTY = results.Result(Outcome("single", "One", (), ()), {"cores": "2"}, "2026-01-01", 1.5, 5, 1.0)


@given(OUTCOMES, st.dictionaries(TEXTS, TEXTS, max_size=2))
def test_a_result_comes_back_as_it_was(outcome: Outcome, machine: dict[str, str]) -> None:
    result = replace(EMPTY, outcome=outcome, machine=machine)
    assert results.loads(results.dumps(result)) == result


def test_a_partial_run_replaces_its_own_scenario_and_no_other(tmp_path: Path) -> None:
    other = replace(EMPTY, outcome=replace(EMPTY.outcome, scenario="disk"))
    later = replace(EMPTY, measured="2026-02-02")
    for result in (EMPTY, other, later):
        results.write(result, tmp_path)
    assert results.read_all(tmp_path) == [other, later]


@pytest.mark.parametrize("text", ["[]", '{"format": 0}', "{}"])
def test_what_is_no_result_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a result"):
        results.loads(text)
