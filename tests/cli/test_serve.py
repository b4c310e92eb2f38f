from __future__ import annotations

import re
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from support.commands import RunningReceiver, Tdx, parsed
from support.processes import wait_until


def folder_in(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir(mode=0o700)
    return folder


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_every_address_has_its_line_and_then_the_metrics(tdx: Tdx, tmp_path: Path) -> None:
    flags = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    receiver = RunningReceiver(tdx, folder_in(tmp_path), tmp_path / "log", flags)
    try:
        second, metrics = receiver.line("listening"), receiver.line("metrics")
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", second)
        assert second != receiver.address
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=30) as answer:
            assert b"tdx_build_info" in answer.read()
    finally:
        assert receiver.stop() == 0


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback")
def test_an_ipv6_address_is_written_in_brackets_and_can_be_pushed_to(tdx: Tdx, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"six")
    receiver = RunningReceiver(tdx, folder_in(tmp_path), tmp_path / "log", ["--listen", "[::1]:0"])
    try:
        address = receiver.line("listening")
        assert address.startswith("[::1]:")
        done = tdx("push", tmp_path / "f", address)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        assert receiver.stop() == 0


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGINT],
)
def test_a_receiver_that_is_told_to_stop_exits_with_0(number: int, tdx: Tdx, tmp_path: Path) -> None:
    receiver = RunningReceiver(tdx, folder_in(tmp_path), tmp_path / "log")
    assert receiver.stop(number) == 0
    assert "Traceback" not in receiver.log.read_text()


def test_a_file_configures_and_flags_win(tdx: Tdx, tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    config = tmp_path / "tdx.toml"
    config.write_text('dir = "elsewhere"\nlisten = ["127.0.0.1:1"]\nlog_level = "debug"\n')
    receiver = RunningReceiver(tdx, folder, tmp_path / "log", ["--config", str(config)])
    assert receiver.stop() == 0
    assert not (tmp_path / "elsewhere").exists()


def test_a_second_receiver_for_a_folder_is_78(tdx: Tdx, receiver: RunningReceiver) -> None:
    done = tdx("serve", "--dir", receiver.folder, "--listen", "127.0.0.1:0")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("tdx: ")
    assert done.stderr.count("\n") == 1


def test_a_folder_that_others_may_write_is_78(tdx: Tdx, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    done = tdx("serve", "--dir", folder, "--listen", "127.0.0.1:0")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1


def test_an_address_that_is_taken_is_78(tdx: Tdx, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = tdx("serve", "--dir", folder_in(tmp_path), "--listen", address)
    assert done.returncode == 78
    assert address in done.stderr


@pytest.mark.parametrize("text", ["dir = 5", "nonsense = 1", "dir ="])
def test_a_wrong_configuration_is_78(text: str, tdx: Tdx, tmp_path: Path) -> None:
    config = tmp_path / "tdx.toml"
    config.write_text(text)
    done = tdx("serve", "--config", config)
    assert done.returncode == 78
    assert str(config) in done.stderr


def test_the_environment_may_name_the_configuration(tdx: Tdx, tmp_path: Path) -> None:
    config = tmp_path / "tdx.toml"
    config.write_text("colour = 1")
    done = tdx("serve", env={"TDX_CONFIG": str(config)})
    assert (done.returncode, f"{config}: colour " in done.stderr) == (78, True)


def test_a_configuration_without_a_folder_is_78(tdx: Tdx, tmp_path: Path) -> None:
    config = tmp_path / "tdx.toml"
    config.write_text("")
    assert tdx("serve", "--config", config).returncode == 78


def test_a_limit_holds_from_the_signal_on_that_has_it_read(tdx: Tdx, tmp_path: Path) -> None:
    folder, config, source = tmp_path / "limited", tmp_path / "tdx.toml", tmp_path / "source"
    folder.mkdir(mode=0o700)
    source.write_bytes(bytes(2 << 20))
    config.write_text('limit_rate = "1K"\n')
    running = RunningReceiver(tdx, folder, tmp_path / "limited.log", ["--config", str(config)])
    try:
        assert tdx("push", source, running.address, "-q", "--timeout", "1s").returncode == 75
        config.write_text('limit_rate = ["00:00-12:00 1M", "1M"]\n')
        running.process.send_signal(signal.SIGHUP)
        said = "rules, rate limit and identity providers are as configured now"
        wait_until(lambda: said in running.log.read_text(), "it has read them again")
        source.write_bytes(b"x" * (2 << 20))  # what was sent before may still arrive
        done = tdx("push", source, running.address, "--json", "--name", "another")
        assert parsed(done.stdout)[-1]["event"] == "done"
        assert parsed(done.stdout)[-1]["seconds"] > 1.5
    finally:
        assert running.stop() == 0


def test_what_is_no_rate_is_an_error_of_usage(tdx: Tdx, tmp_path: Path) -> None:
    for command in (["serve", "--dir", tmp_path], ["push", __file__, "127.0.0.1:1"]):
        done = tdx(*command, "--limit-rate", "08:00-09:00 1M, 08:30-10:00 2M")
        assert (done.returncode, done.stdout) == (64, "")
        assert "the times 08:00-09:00 and 08:30-10:00 overlap" in done.stderr
