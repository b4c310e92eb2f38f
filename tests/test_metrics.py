from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.metrics import (
    DURATION_BUCKETS,
    THROUGHPUT_BUCKETS,
    Counter,
    Family,
    Gauge,
    Histogram,
    Kind,
    Metrics,
    Sample,
)
from tdx.model import Stages

DOCUMENT = Path(__file__).parents[1] / "docs" / "metrics.md"


def family_of(metrics: Metrics, name: str) -> Family:
    return next(family for family in metrics.families() if family.name == name)


def test_a_counter_without_labels_starts_at_zero() -> None:
    counter = Counter("tdx_things_total", "Things.")
    assert counter.family() == Family("tdx_things_total", "Things.", Kind.COUNTER, (), (Sample((), 0),))
    counter.add()
    counter.add(41)
    assert counter.value() == 42


def test_a_counter_with_labels_counts_each_apart() -> None:
    counter = Counter("tdx_things_total", "Things.", ("kind", "size"))
    assert counter.family().samples == ()
    counter.add(2, ("b", "small"))
    counter.add(labels=("a", "small"))
    counter.add(3, ("b", "small"))
    assert counter.value(("b", "small")) == 5
    assert counter.value(("c", "small")) == 0
    assert counter.family().samples == (Sample(("a", "small"), 1), Sample(("b", "small"), 5))


def test_adding_nothing_makes_a_labelled_series_appear() -> None:
    counter = Counter("tdx_things_total", "Things.", ("kind",))
    counter.add(0, ("a",))
    assert counter.family().samples == (Sample(("a",), 0),)


def test_a_counter_never_goes_down() -> None:
    counter = Counter("tdx_things_total", "Things.")
    with pytest.raises(ValueError, match="cannot go down"):
        counter.add(-1)
    assert counter.value() == 0


def test_a_counters_name_ends_in_total() -> None:
    with pytest.raises(ValueError, match="_total"):
        Counter("tdx_things", "Things.")


@pytest.mark.parametrize("labels", [(), ("a", "b")])
def test_the_wrong_number_of_labels_is_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="has the labels"):
        Counter("tdx_things_total", "Things.", ("kind",)).add(1, labels)
    with pytest.raises(ValueError, match="has the labels"):
        Gauge("tdx_things", "Things.", ("kind",)).set(1, labels)


def test_bytes_are_counted_exactly_beyond_what_a_float_holds() -> None:
    counter = Counter("tdx_things_total", "Things.")
    counter.add(1 << 53)
    counter.add(1)
    assert counter.value() == (1 << 53) + 1


def test_nothing_is_lost_when_threads_count_at_once() -> None:
    counter = Counter("tdx_things_total", "Things.")
    histogram = Histogram("tdx_sizes", "Sizes.", (1.0,))
    start = threading.Barrier(4)

    def work() -> None:
        start.wait(timeout=30)
        for _ in range(5000):
            counter.add(3)
            histogram.observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value() == 60_000
    distribution = histogram.family().distribution
    assert distribution is not None
    assert distribution.buckets[-1] == (float("inf"), 20_000)


def test_a_gauge_goes_up_and_down() -> None:
    gauge = Gauge("tdx_things", "Things.")
    gauge.add()
    gauge.add(-3)
    assert gauge.value() == -2
    gauge.set(7)
    assert gauge.family() == Family("tdx_things", "Things.", Kind.GAUGE, (), (Sample((), 7),))


def test_a_gauge_follows_a_source() -> None:
    values = iter([1.0, 2.0])
    gauge = Gauge("tdx_things", "Things.")
    gauge.follow(lambda: next(values))
    assert gauge.family().samples == (Sample((), 1.0),)
    assert gauge.family().samples == (Sample((), 2.0),)


def test_a_gauge_whose_source_fails_has_no_sample() -> None:
    def gone() -> float:
        raise OSError("disk gone")

    gauge = Gauge("tdx_things", "Things.")
    gauge.follow(gone)
    assert gauge.family().samples == ()


def test_a_gauge_with_labels_follows_nothing() -> None:
    with pytest.raises(ValueError, match="has labels"):
        Gauge("tdx_things", "Things.", ("kind",)).follow(lambda: 1.0)


def test_a_value_on_a_bound_counts_as_within_it() -> None:
    histogram = Histogram("tdx_sizes", "Sizes.", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    distribution = histogram.family().distribution
    assert distribution is not None
    assert distribution.buckets == ((1.0, 2), (2.0, 4), (float("inf"), 5))
    assert distribution.sum == 14.0


@given(st.lists(st.floats(min_value=0, max_value=1e12)))
def test_bucket_counts_never_fall_and_end_at_the_number_of_values(values: list[float]) -> None:
    histogram = Histogram("tdx_sizes", "Sizes.", THROUGHPUT_BUCKETS)
    for value in values:
        histogram.observe(value)
    distribution = histogram.family().distribution
    assert distribution is not None
    counts = [count for _, count in distribution.buckets]
    assert counts == sorted(counts)
    assert counts[-1] == len(values)
    assert [count for bound, count in distribution.buckets if bound == 1e9] == [sum(v <= 1e9 for v in values)]


@pytest.mark.parametrize("buckets", [(2.0, 1.0), (1.0, 1.0)])
def test_buckets_that_do_not_ascend_are_refused(buckets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        Histogram("tdx_sizes", "Sizes.", buckets)


def test_the_buckets_reach_from_a_tenth_of_a_second_to_three_hours_and_from_a_megabyte_to_ten_gigabytes() -> (
    None
):
    assert (DURATION_BUCKETS[0], DURATION_BUCKETS[-1]) == (0.1, 10800.0)
    assert (THROUGHPUT_BUCKETS[0], THROUGHPUT_BUCKETS[-1]) == (1e6, 1e10)


def test_every_series_has_a_help_text_and_a_name_of_its_own() -> None:
    families = list(Metrics("1.2.3").families())
    assert all(family.help.endswith(".") for family in families)
    assert len({family.name for family in families}) == len(families)


def test_the_running_version_is_a_label() -> None:
    info = family_of(Metrics("1.2.3"), "tdx_build_info")
    assert (info.labels, info.samples) == (("version",), (Sample(("1.2.3",), 1),))


def test_every_stage_is_there_from_the_start_and_grows() -> None:
    metrics = Metrics("1.2.3")
    stages = {"read", "hash", "send", "receive", "write", "sync", "limit"}
    assert {sample.labels[0] for sample in family_of(metrics, "tdx_stage_seconds_total").samples} == stages
    metrics.add_stages(Stages(read=1.5, sync=0.5))
    metrics.add_stages(Stages(read=1.0))
    assert metrics.stage_seconds.value(("read",)) == 2.5
    assert metrics.stage_seconds.value(("sync",)) == 0.5
    assert metrics.stage_seconds.value(("hash",)) == 0


def documented(heading: str) -> list[list[str]]:
    """The rows of the first table after a line of docs/metrics.md, cell by cell."""
    text = DOCUMENT.read_text().partition(heading)[2].partition("\n|---")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[1:]]


def test_each_series_is_documented_as_it_is_and_nothing_else() -> None:
    families = list(Metrics("1.2.3").families())
    told = {row[0]: (row[1], row[2]) for row in documented("# The metrics")}
    assert told == {
        f"`{family.name}`": (family.kind.value, ", ".join(f"`{label}`" for label in family.labels))
        for family in families
    }
    assert len(documented("# The metrics")) == len(families)


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("## Every byte", "tdx_discarded_bytes_total"),
        ("## What transfers", "tdx_bottleneck_seconds_total"),
    ],
)
def test_labels_of_a_closed_set_are_there_from_the_start_and_documented(heading: str, name: str) -> None:
    samples = family_of(Metrics("1.2.3"), name).samples
    assert {f"`{sample.labels[0]}`" for sample in samples} == {row[0] for row in documented(heading)}
    assert all(sample.value == 0 for sample in samples)


def test_uploads_and_bytes_of_either_protocol_are_there_from_the_start() -> None:
    """So that the first failure is an increase."""
    metrics = Metrics("1.2.3")
    results = {"published", "identical", "skipped", "failed", "cancelled", "superseded"}
    uploads = family_of(metrics, "tdx_uploads_total").samples
    assert {sample.labels for sample in uploads} == {(p, r) for p in ("tdx", "http") for r in results}
    received = family_of(metrics, "tdx_received_bytes_total").samples
    assert {sample.labels for sample in received} == {("tdx",), ("http",)}
    assert not any(sample.value for sample in (*uploads, *received))


def test_a_transfer_too_short_to_tell_waited_for_something_unknown() -> None:
    metrics = Metrics("1.2.3")
    metrics.waited_for(None, 0.25)
    metrics.waited_for("network", 2.0)
    assert metrics.bottleneck_seconds.value(("unknown",)) == 0.25
    assert metrics.bottleneck_seconds.value(("network",)) == 2.0
