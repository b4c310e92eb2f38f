"""What a push leaves for Prometheus: files that are whole at every moment, and what a Pushgateway is sent."""

from __future__ import annotations

import base64
import http.server
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tdx.export.one_shot import FAMILIES, SUCCESS, Outcome, post, write_textfile

GOOD = Outcome("nightly", "nas", completed=1000.5, seconds=2.0, exit_code=0, size=7)
BAD = replace(GOOD, completed=2000.0, exit_code=69, size=0)
ODD = 'a/b "c" \\ d\u2028é'

Series = dict[str, dict[tuple[str, ...], float]]


def read(path: Path) -> Series:
    """The values of the file by name, and by task, peer and what other labels there are."""
    found: Series = {}
    for metric in text_string_to_metric_families(path.read_text()):
        for each in metric.samples:
            assert each.timestamp is None
            labels = dict(each.labels)
            key = (labels.pop("task"), labels.pop("peer"), *labels.values())
            found.setdefault(each.name, {})[key] = each.value
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nightly.prom"


# --- the file -----------------------------------------------------------------------


def test_what_a_run_came_to_is_in_the_file(file: Path) -> None:
    outcome = replace(
        GOOD,
        sent=5,
        resumed=4,
        reused=3,
        retries=2,
        files={"done": 1, "failed": 0},
        sender={"read": 0.5},
        receiver={"write": 1.5},
        bottleneck="receiver disk",
        interval=86400.0,
    )
    write_textfile(file, [outcome])
    found = read(file)
    assert list(found) == [family.name for family in FAMILIES]
    short = {name.removeprefix("tdx_push_"): list(values.values()) for name, values in found.items()}
    assert short == {
        "last_completion_timestamp_seconds": [1000.5],
        "last_success_timestamp_seconds": [1000.5],
        "last_duration_seconds": [2],
        "last_exit_code": [0],
        "last_size_bytes": [7],
        "last_sent_bytes": [5],
        "last_resumed_bytes": [4],
        "last_reused_bytes": [3],
        "last_retries": [2],
        "last_files": [1, 0],
        "last_stage_seconds": [1.5, 0.5],
        "last_bottleneck": [1],
        "interval_seconds": [86400],
    }
    assert found["tdx_push_last_bottleneck"] == {("nightly", "nas", "receiver disk"): 1}


def test_a_failure_keeps_when_it_last_succeeded(file: Path) -> None:
    write_textfile(file, [GOOD])
    for _ in range(2):
        write_textfile(file, [BAD])
        assert read(file)[SUCCESS] == {("nightly", "nas"): 1000.5}
        assert read(file)["tdx_push_last_exit_code"] == {("nightly", "nas"): 69}
    write_textfile(file, [replace(GOOD, completed=3000.0)])
    assert read(file)[SUCCESS] == {("nightly", "nas"): 3000}


def test_what_has_never_succeeded_has_no_success(file: Path) -> None:
    write_textfile(file, [BAD])
    assert SUCCESS not in read(file)


@pytest.mark.parametrize("other", [replace(GOOD, task="weekly"), replace(GOOD, peer="office")])
def test_the_success_of_another_task_or_peer_is_not_ours(file: Path, other: Outcome) -> None:
    write_textfile(file, [other])
    write_textfile(file, [BAD])
    assert SUCCESS not in read(file)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"\0\xff" * 1000,
        b"tdx_push_last_success_timestamp_seconds{",
        b'tdx_push_last_success_timestamp_seconds{task="nightly"} 5\n',
        b'tdx_push_last_success_timestamp_seconds{task="nightly",peer="nas"} NaN\n',
        b'tdx_push_last_success_timestamp_seconds{task="nightly",peer="nas"} soon\n',
        b"tdx_push_last_success_timestamp_seconds 5\n",
        b'tdx_push_other{task="nightly",peer="nas"} 5\n',
    ],
)
def test_rubbish_in_the_file_is_replaced(file: Path, rubbish: bytes) -> None:
    file.write_bytes(rubbish)
    write_textfile(file, [BAD])
    assert set(read(file)["tdx_push_last_exit_code"].values()) == {69}
    assert SUCCESS not in read(file)
    assert "tdx_push_other" not in read(file)


def test_a_success_between_rubbish_is_found(file: Path) -> None:
    write_textfile(file, [GOOD])
    file.write_bytes(b"tdx_push_last_files{\n\xff\n" + file.read_bytes() + b"tdx_push_last_exit_code{")
    write_textfile(file, [BAD])
    assert read(file)[SUCCESS] == {("nightly", "nas"): 1000.5}


def test_names_of_all_kinds_come_back(file: Path) -> None:
    write_textfile(file, [replace(GOOD, task=ODD)])
    write_textfile(file, [replace(BAD, task=ODD)])
    assert read(file)[SUCCESS] == {(ODD, "nas"): 1000.5}


def test_of_those_that_share_a_file_who_was_not_run_stays_and_who_is_no_more_goes(file: Path) -> None:
    other, gone = replace(GOOD, task="other", interval=60.0), replace(GOOD, task="gone")
    write_textfile(file, [GOOD, other, gone])
    before = read(file)
    write_textfile(file, [BAD], {("nightly", "nas"), ("other", "nas")})
    after = read(file)
    for name, values in before.items():
        assert after[name].items() >= {(key, value) for key, value in values.items() if key[0] == "other"}
    assert {key[0] for values in after.values() for key in values} == {"nightly", "other"}
    assert after["tdx_push_last_exit_code"] == {("nightly", "nas"): 69, ("other", "nas"): 0}


def test_the_file_is_for_everybody_to_read_and_nothing_else_is_left(file: Path) -> None:
    before = os.umask(0o077)
    try:
        write_textfile(file, [GOOD])
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert os.listdir(file.parent) == [file.name]


def test_where_it_cannot_be_replaced_nothing_is_left_behind(file: Path) -> None:
    file.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_textfile(file, [GOOD])
    assert os.listdir(file.parent) == [file.name]


def test_who_reads_while_it_is_written_sees_a_whole_file(file: Path) -> None:
    write_textfile(file, [GOOD])
    whole = set(read(file))
    stop, seen, wrong = threading.Event(), [0], list[str]()

    def look() -> None:
        while not stop.is_set():
            text = file.read_text()
            seen[0] += 1
            if not text.endswith("} 1.0\n") or set(read(file)) != whole:
                wrong.append(text)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(100):
            write_textfile(file, [replace(BAD if number % 2 else GOOD, size=number)])
    finally:
        stop.set()
        reader.join()
    assert wrong == []
    assert seen[0] > 1


# --- the Pushgateway ------------------------------------------------------------------


@dataclass
class Asked:
    """What a gateway was asked; how it answers."""

    status: int = 200
    lines: list[str] = field(default_factory=list[str])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    bodies: list[str] = field(default_factory=list[str])
    port: int = 0


@pytest.fixture
def gateway() -> Iterator[Asked]:
    asked = Asked()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.lines.append(f"{self.command} {self.path}")
            asked.headers.append(dict(self.headers))
            asked.bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(asked.status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "8")
            self.end_headers()
            self.wfile.write(b"because\n")

        def do_GET(self) -> None:
            asked.lines.append(f"{self.command} {self.path}")
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        asked.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("task", "step"),
    [
        ("nightly", "task/nightly"),
        *(
            (name, "task@base64/" + base64.urlsafe_b64encode(name.encode()).decode())
            for name in ("a b", ODD, "..")
        ),
    ],
)
def test_a_group_of_its_own_is_added_to(gateway: Asked, task: str, step: str) -> None:
    post(f"http://127.0.0.1:{gateway.port}/below/", replace(BAD, task=task), 5)
    assert gateway.lines == [f"POST /below/metrics/job/tdx-push/{step}/peer/nas"]
    assert "tdx_push_last_exit_code" in gateway.bodies[0]
    assert SUCCESS not in gateway.bodies[0]
    assert "Authorization" not in gateway.headers[0]


def test_who_is_calling_goes_into_a_header(gateway: Asked) -> None:
    post(f"http://me:se%40cret@127.0.0.1:{gateway.port}", GOOD, 5)
    assert gateway.headers[0]["Authorization"] == "Basic " + base64.b64encode(b"me:se@cret").decode()
    assert "me" not in gateway.headers[0]["Host"]


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "it answers 400: because"), (503, "it answers 503: because"), (302, "it answers 302, a redirect")],
)
def test_a_refusal_says_why_and_a_redirect_is_not_followed(gateway: Asked, status: int, message: str) -> None:
    gateway.status = status
    with pytest.raises(OSError, match=message):
        post(f"http://127.0.0.1:{gateway.port}", GOOD, 5)
    assert len(gateway.lines) == 1


def test_nobody_there_is_an_error_without_a_password() -> None:
    with pytest.raises(OSError, match="Connection refused") as refused:
        post("http://me:secret@127.0.0.1:1", GOOD, 5)
    assert "secret" not in str(refused.value)
