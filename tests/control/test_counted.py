"""What a receiver counts of what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.datakit import pattern
from support.receiving import RunningReceiver, push
from support.uploading import open_upload
from tdx.metrics import Distribution, Histogram

EXTENT = 4 << 20
CONTENT = pattern(2 * EXTENT)


def distribution(series: Histogram) -> Distribution:
    found = series.family().distribution
    assert found is not None
    return found


def ended(receiver: RunningReceiver) -> dict[tuple[str, ...], float]:
    samples = receiver.metrics.uploads.family().samples
    return {sample.labels: sample.value for sample in samples if sample.value}


def test_every_end_of_an_upload_is_counted_once(receiver: RunningReceiver, tmp_path: Path) -> None:
    source = tmp_path / "pushed"
    source.write_bytes(CONTENT)
    push(receiver.peer, source, tmp_path / "sender")
    push(receiver.peer, source, tmp_path / "sender")
    receiver.request("PUT", "/files/plain", b"plain")
    receiver.request("PUT", "/files/plain", b"plain")
    receiver.request("PUT", "/files/plain", b"other", {"Tdx-Conflict": "skip"})
    cancelled = open_upload(receiver, "c", len(CONTENT))
    receiver.request("DELETE", cancelled.target, headers=cancelled.fields)
    open_upload(receiver, "s", len(CONTENT))
    open_upload(receiver, "s", len(CONTENT))
    receiver.request("PUT", "/files/f", b"x", {"Content-Digest": f"sha-256=:{'A' * 43}=:"})
    assert ended(receiver) == {
        ("tdx", "published"): 1,
        ("tdx", "identical"): 1,
        ("http", "published"): 1,
        ("http", "identical"): 1,
        ("http", "skipped"): 1,
        ("tdx", "cancelled"): 1,
        ("tdx", "superseded"): 1,
        ("http", "failed"): 1,
    }
    # What needed no upload has no duration; what moved no bytes has no throughput.
    assert distribution(receiver.metrics.transfer_duration).buckets[-1][1] == 7
    assert distribution(receiver.metrics.transfer_throughput).buckets[-1][1] == 2


def test_bytes_stages_and_what_is_open_are_told(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", len(CONTENT))
    upload.put(receiver, 0, CONTENT[:EXTENT], len(CONTENT))
    families = {family.name: family for family in receiver.metrics.families()}
    assert families["tdx_uploads_active"].samples[0].value == 1
    assert families["tdx_staging_bytes"].samples[0].value >= EXTENT
    assert families["tdx_storage_free_bytes"].samples[0].value > 0
    assert receiver.metrics.received_bytes.value(("tdx",)) == EXTENT
    for stage in ("receive", "hash", "write"):
        assert receiver.metrics.stage_seconds.value((stage,)) > 0
    upload.put(receiver, EXTENT, CONTENT[EXTENT:], len(CONTENT))
    upload.commit(receiver, CONTENT)
    assert len(receiver.running.sessions) == 0


@pytest.mark.parametrize(
    ("method", "target", "labels"),
    [
        ("GET", "/v1/hello", ("GET", "hello", "200")),
        ("POST", "/v1/tree", ("POST", "tree", "415")),
        ("HEAD", "/files/none", ("HEAD", "files", "404")),
        ("GET", "/uploads/" + "0" * 32, ("GET", "upload", "404")),
        ("POST", "/uploads/" + "0" * 32 + "/commit", ("POST", "commit", "400")),
        ("GET", "/nowhere", ("GET", "none", "404")),
        ("PROPFIND", "/v1/hello", ("other", "hello", "405")),
    ],
)
def test_requests_are_counted_under_labels_of_a_bounded_number(
    receiver: RunningReceiver, method: str, target: str, labels: tuple[str, ...]
) -> None:
    receiver.request(method, target)
    assert [sample.labels for sample in receiver.metrics.requests.family().samples] == [labels]


def test_refusals_are_counted_by_their_reason(receiver: RunningReceiver) -> None:
    receiver.request("PUT", "/files/..", b"x")
    receiver.request("PUT", "/files/f", b"x", {"Host": "evil.example"})
    with receiver.connect() as wire:
        wire.send(b"\0\0\0\0").answer()
    assert receiver.refusals() == {("bad-name",): 1, ("forbidden",): 1, ("protocol",): 1}
