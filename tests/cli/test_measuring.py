"""What the flags of measuring ask for, and that every end of a real push and batch is written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.batches import write_batch
from support.commands import PATIENCE, RunningReceiver, Tdx
from support.content import MIB
from support.processes import ROOT, wait_until
from tdx.export.one_shot import FAMILIES
from tdx_cli.measuring import PATIENCE as WRITING
from tdx_cli.measuring import shown_url

TOLD = dict[tuple[str, str, str], float]


def told(file: Path) -> TOLD:
    """The values by task, peer and short name, with the values of further labels behind it."""
    found: TOLD = {}
    for metric in text_string_to_metric_families(file.read_text()):
        for each in metric.samples:
            name = each.name.removeprefix("tdx_push_").removeprefix("last_")
            if each.labels.keys() == {"task", "peer"}:
                found[name, each.labels["task"], each.labels["peer"]] = each.value
            else:
                rest = [each.labels[label] for label in sorted(each.labels.keys() - {"task", "peer"})]
                found[" ".join([name, *rest]), each.labels["task"], each.labels["peer"]] = each.value
    return found


def value(file: Path, name: str) -> float | None:
    """Of a file that tells of one task."""
    return {short: number for (short, _, _), number in told(file).items()}.get(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nightly.prom"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "f.bin"
    path.write_bytes(os.urandom(5 * MIB))
    return path


@pytest.fixture
def silent() -> Iterator[str]:
    """A peer, or a gateway, that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def flags(file: Path) -> list[str]:
    return ["--metrics-textfile", str(file), "--metrics-task", "nightly"]


def stages_in(file: Path, end: str) -> dict[str, float]:
    """The stages of an end that took time."""
    start = f"stage_seconds {end} "
    return {
        name.removeprefix(start): spent
        for (name, _, _), spent in told(file).items()
        if name.startswith(start) and spent
    }


# --- the ends of a push -------------------------------------------------------------


def test_a_success_and_what_is_there_already(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    before = time.time()
    for sent, outcome in ((5 * MIB, "done"), (0, "identical")):
        done = tdx("push", source, receiver.address, *flags(file), "--metrics-interval", "1d")
        assert (done.returncode, done.stderr) == (0, "")
        assert value(file, "exit_code") == 0
        assert value(file, "size_bytes") == 5 * MIB
        assert value(file, "sent_bytes") == sent
        assert value(file, f"files {outcome}") == 1
        assert value(file, "interval_seconds") == 86400
        assert value(file, "retries") == 0
        for end, stage in (("sender", "hash"), ("sender", "send"), ("receiver", "write")):
            spent = value(file, f"stage_seconds {end} {stage}")
            assert spent is not None
            assert spent > 0 or not sent
        success = value(file, "success_timestamp_seconds")
        assert success is not None
        assert before <= success <= time.time()
        assert success == value(file, "completion_timestamp_seconds")
    assert {peer for _, _, peer in told(file)} == {receiver.address}


def test_stages_retries_and_bottleneck_are_those_of_the_events(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    given = ("--json", "--limit-rate", "5M", *flags(file))
    done = tdx("push", source, receiver.address, *given)
    (*_, last) = map(json.loads, done.stdout.splitlines())
    assert last["event"] == "done"
    assert last["bottleneck"] == "rate limit"
    assert value(file, "bottleneck rate limit") == 1
    assert value(file, "bottleneck unknown") is None
    assert value(file, "retries") == last["retries"]
    for end in ("sender", "receiver"):
        assert stages_in(file, end) == pytest.approx(last["stages"][end], abs=1e-3)


def test_of_several_files_some_fail(tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path) -> None:
    done = tdx("push", source, source.parent / "none", receiver.address, *flags(file))
    assert done.returncode == value(file, "exit_code") == 66
    assert (value(file, "files done"), value(file, "files failed")) == (1, 1)
    assert value(file, "size_bytes") == 5 * MIB
    assert value(file, "success_timestamp_seconds") is None


def test_a_skipped_file_is_a_success(tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path) -> None:
    (receiver.folder / "f.bin").write_bytes(b"other")
    assert tdx("push", source, receiver.address, "--conflict", "skip", *flags(file)).returncode == 0
    assert (value(file, "files skipped"), value(file, "size_bytes")) == (1, 0)
    assert value(file, "success_timestamp_seconds") is not None


@pytest.mark.parametrize(("peer", "code"), [("no..such..peer", 68), ("127.0.0.1:1", 69), ("a b", 64)])
def test_a_peer_that_is_not_there(tdx: Tdx, source: Path, file: Path, peer: str, code: int) -> None:
    done = tdx("push", source, peer, "--retries", "0", *flags(file))
    assert done.returncode == value(file, "exit_code") == code
    assert done.stderr.count("\n") == 1


def test_a_configuration_that_is_wrong(tdx: Tdx, source: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("nonsense = 1\n")
    done = tdx("push", source, "nas", "--config", tmp_path / "c.toml", *flags(file))
    assert done.returncode == value(file, "exit_code") == 78


def test_an_output_that_nobody_reads(tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path) -> None:
    with open("/dev/full", "w") as full:
        done = tdx("push", source, receiver.address, *flags(file), stdout=full)
    assert done.returncode == value(file, "exit_code") == 74


def test_a_failure_keeps_the_success(tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path) -> None:
    assert tdx("push", source, receiver.address, *flags(file)).returncode == 0
    success = value(file, "success_timestamp_seconds")
    assert success is not None
    receiver.stop()
    assert tdx("push", source, receiver.address, "--retries", "0", *flags(file)).returncode == 69
    assert value(file, "exit_code") == 69
    assert value(file, "success_timestamp_seconds") == success
    completion = value(file, "completion_timestamp_seconds")
    assert completion is not None
    assert completion > success


def started(tdx: Tdx, source: Path, peer: str, *given: object) -> subprocess.Popen[bytes]:
    """A push that has got to where it waits for a peer."""
    process = tdx.start("push", "--json", source, peer, *given, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "started"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal(tdx: Tdx, source: Path, file: Path, silent: str, number: signal.Signals) -> None:
    with started(tdx, source, silent, *flags(file)) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE) == value(file, "exit_code") == 75


def test_a_timeout(tdx: Tdx, source: Path, file: Path, silent: str) -> None:
    done = tdx("push", source, silent, "--timeout", "1s", *flags(file))
    assert done.returncode == value(file, "exit_code") == 75
    duration = value(file, "duration_seconds")
    assert duration is not None
    assert 1 <= duration < 30


@pytest.fixture
def full() -> Iterator[int]:
    """A pipe that takes nothing any more."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(1 << 20):
                os.write(writer, b"\n" * 4096)
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def test_a_push_that_hangs_and_is_torn_off_by_its_time_limit(
    tdx: Tdx, source: Path, file: Path, full: int
) -> None:
    with tdx.start(
        *("push", source, "127.0.0.1:1", "--json", "--timeout", "0.1s"), *flags(file), stdout=full
    ) as process:
        assert process.wait(PATIENCE) == value(file, "exit_code") == 75


def test_a_push_that_hangs_and_is_torn_off_by_a_second_signal(
    tdx: Tdx, source: Path, file: Path, full: int
) -> None:
    with tdx.start("push", source, "127.0.0.1:1", "--json", *flags(file), stdout=full) as process:

        def handles_signals() -> bool:
            status = Path(f"/proc/{process.pid}/status").read_text()
            (caught,) = re.findall(r"(?m)^SigCgt:\s*(\w+)$", status)
            return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))

        wait_until(handles_signals, "signals are handled")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == value(file, "exit_code") == 75


def test_a_kill_leaves_the_old_file_whole(tdx: Tdx, source: Path, file: Path, silent: str) -> None:
    assert tdx("push", source, "127.0.0.1:1", "--retries", "0", *flags(file)).returncode == 69
    before = file.read_bytes()
    with started(tdx, source, silent, *flags(file)) as process:
        process.kill()
        process.wait(PATIENCE)
    assert file.read_bytes() == before


# --- what cannot be written ------------------------------------------------------------


def test_what_cannot_be_written_is_a_line_and_not_the_exit_code(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    done = tdx(
        *("push", source, receiver.address, "--metrics-push", "http://me:secret@127.0.0.1:1/x"),
        *flags(file),
    )
    assert done.returncode == value(file, "exit_code") == 0
    assert done.stderr == (
        "tdx: http://127.0.0.1:1/x: the measurements were not sent: Connection refused; "
        "the push itself is not affected\n"
    )


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A gateway that answers the first request with this."""

    def talk(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1 << 16)
            sock.sendall(answer)
            while sock.recv(1 << 16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        thread = threading.Thread(target=talk, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 busy\r\nContent-Length: 9\r\n\r\n\x1b]0;X\x07\r\nno",
        b"HTTP/1.1 503 \x1b[31mbusy\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_a_gateway_says_drives_no_terminal(
    tdx: Tdx, receiver: RunningReceiver, source: Path, answer: bytes
) -> None:
    with answering(answer) as url:
        done = tdx("push", source, receiver.address, "-q", "--metrics-push", url, "--metrics-task", "nightly")
    assert done.returncode == 0
    assert "it answers 503" in done.stderr
    assert done.stderr.removesuffix("\n").isprintable()


def test_a_gateway_that_does_not_answer_is_not_waited_for(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path, silent: str
) -> None:
    began = time.monotonic()
    done = tdx("push", source, receiver.address, "--metrics-push", f"http://{silent}", *flags(file))
    assert WRITING <= time.monotonic() - began < WRITING + 30
    assert done.returncode == value(file, "exit_code") == 0
    assert "the measurements were not sent" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--metrics-textfile", "{}/x.txt", "--metrics-task", "a"], "must end in .prom"),
        (["--metrics-textfile", "{}/none/x.prom", "--metrics-task", "a"], "there is no folder"),
        (["--metrics-textfile", "{}/dir.prom", "--metrics-task", "a"], "is a folder"),
        (["--metrics-push", "ftp://host", "--metrics-task", "a"], "not the address of a Pushgateway"),
        (["--metrics-push", "http://", "--metrics-task", "a"], "not the address of a Pushgateway"),
        (["--metrics-push", "http://h:x", "--metrics-task", "a"], "not the address of a Pushgateway"),
        (["--metrics-push", "h:9091", "--metrics-task", "a"], "not the address of a Pushgateway"),
        (["--metrics-push", "ftp://me:secret@host", "--metrics-task", "a"], "ftp://host: not the address"),
        (["--metrics-textfile", "{}/x.prom"], "need --metrics-task NAME, the same at every run"),
        (["--metrics-textfile", "{}/x.prom", "--metrics-task", "a\nb"], "one line"),
        (["--metrics-textfile", "{}/x.prom", "--metrics-task", ""], "one line"),
        (["--metrics-task", "a"], "without --metrics-textfile or --metrics-push"),
        (["--metrics-interval", "1d"], "without --metrics-textfile or --metrics-push"),
    ],
)
def test_what_could_never_be_written_is_refused_before_anything_is_sent(
    tdx: Tdx, receiver: RunningReceiver, source: Path, tmp_path: Path, given: list[str], message: str
) -> None:
    (tmp_path / "dir.prom").mkdir()
    done = tdx("push", source, receiver.address, *(each.format(tmp_path) for each in given))
    assert done.returncode == 64
    assert message in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert receiver.visible() == []


@pytest.mark.parametrize("url", ["http://u:s3@h/x", "http://u:s3@x@h/x", "u:s3@h/x", "http://u:s://3@h/x"])
def test_a_password_is_never_shown(url: str) -> None:
    assert "s3" not in shown_url(url)
    assert shown_url(url).endswith("h/x")


def test_nothing_is_loaded_for_it_unless_it_is_asked_for(tdx: Tdx, source: Path) -> None:
    done = tdx("push", source, "127.0.0.1:1", "--retries", "0", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 69
    assert "tdx_cli.pushing" in done.stderr
    assert not re.search(r"prometheus_client|one_shot|measuring", done.stderr)


# --- a batch ----------------------------------------------------------------------------


def test_each_item_of_a_batch_is_a_task(
    tdx: Tdx, receiver: RunningReceiver, source: Path, tmp_path: Path
) -> None:
    batch, file = tmp_path / "b.toml", tmp_path / "b.prom"
    items = [
        {"name": "all night", "sources": ["f.bin"], "metrics_interval": "12h"},
        {"name": "none", "sources": ["none"]},
    ]
    top = 'metrics_textfile = "b.prom"'
    write_batch(batch, items, top, peer=receiver.address, conflict="overwrite", metrics_interval="1d")
    assert tdx("batch", batch).returncode == 66
    found = told(file)
    for task, code, size, interval in (("all night", 0, 5 * MIB, 43200), ("none", 66, 0, 86400)):
        assert found["exit_code", task, receiver.address] == code
        assert found["size_bytes", task, receiver.address] == size
        assert found["interval_seconds", task, receiver.address] == interval
        assert (("success_timestamp_seconds", task, receiver.address) in found) == (not code)
    assert tdx("batch", batch, "--only", "none", "--metrics-interval", "7d").returncode == 66
    after = told(file)
    assert after["interval_seconds", "none", receiver.address] == 604800
    assert {key: each for key, each in after.items() if key[1] == "all night"} == {
        key: each for key, each in found.items() if key[1] == "all night"
    }


def test_a_batch_that_is_stopped_tells_of_what_it_had_not_begun(
    tdx: Tdx, source: Path, tmp_path: Path, silent: str
) -> None:
    batch, file = tmp_path / "b.toml", tmp_path / "b.prom"
    write_batch(batch, [{"sources": ["f.bin"]}, {"sources": ["f.bin"]}], peer=silent, conflict="overwrite")
    assert tdx("batch", batch, "--timeout", "1s", "--metrics-textfile", file).returncode == 75
    codes = {task: each for (name, task, _), each in told(file).items() if name == "exit_code"}
    assert codes == {"a": 75, "b": 75}


@pytest.mark.parametrize(
    "top", ['metrics_textfile = "b.txt"', 'metrics_push = "nowhere"', 'metrics_textfile = "none/b.prom"']
)
def test_a_batch_that_names_what_cannot_be_is_a_wrong_configuration(
    tdx: Tdx, source: Path, tmp_path: Path, top: str
) -> None:
    batch = write_batch(tmp_path / "b.toml", [{"sources": ["f.bin"]}], top, peer="nas", conflict="skip")
    done = tdx("batch", batch)
    assert done.returncode == 78
    assert done.stderr.startswith(f"tdx: {batch}: ")


# --- what is written about it -------------------------------------------------------------


def test_every_series_is_documented() -> None:
    text = (ROOT / "docs" / "cron-metrics.md").read_text()
    rows = re.findall(r"(?m)^\| `(tdx_push_\w+)` \|(.*?)\|", text)
    assert [name for name, _ in rows] == [family.name for family in FAMILIES]
    for family, (_, labels) in zip(FAMILIES, rows, strict=True):
        assert tuple(re.findall(r"`(\w+)`", labels)) == family.labels
