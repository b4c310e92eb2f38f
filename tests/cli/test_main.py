from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from support.commands import Tdx
from tdx.errors import NoSpace
from tdx.version import VERSION
from tdx_cli import hash as hashing
from tdx_cli.app import COMMANDS
from tdx_cli.main import run


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def root_of(file: object, extent_size: int | None = None) -> str:
        raise error

    monkeypatch.setattr(hashing, "root_of", root_of)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "missing command (see tdx --help)"),
        (["frobnicate"], "no such command 'frobnicate' (see tdx --help)"),
        (["hash"], "missing argument 'FILE...' (see tdx hash --help)"),
        (["push", "--frob", "a", "b"], "no such option"),
        (["push", "--conflict", "maybe", "a", "b"], "'maybe' is not one of"),
        (["push", "--limit-rate", "fast", "a", "b"], "write it like 20M, 20MB or 160Mbit"),
        (["push", "--timeout", "soon", "a", "b"], "write it like 90s, 15m, 12h or 7d"),
        (["push", "--stall-timeout", "0", "a", "b"], "a time of 0"),
        (["push", "a"], "push needs a PATH and a PEER"),
        (["push", "a", "b", "peer", "--name", "x"], "--name names one file"),
        (["push", "-", "peer"], "give it one with --name"),
        (["push", "-", "peer", "--name", "x", "--resume"], "cannot be read again from the middle"),
        (["push", "a", "[::1"], "not a peer"),
        (["push", "a", "host:99999"], "not a port"),
        (["serve"], "no folder to receive into"),
        (["serve", "--dir", "d", "--listen", "8390"], "not an address"),
        (["verify", "f", "beef"], "not a root"),
        (["demo", "--size", "1k"], "at least 32.0 MiB"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_64_and_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 64
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("tdx: ")
    assert words in output.err
    assert output.err.count("\n") == 1


def test_an_error_of_the_engine_ends_with_its_own_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, NoSpace("full:\nmake room"))
    assert run(["verify", "f", "xxh3-128:4194304:" + "0" * 32]) != 0
    capsys.readouterr()
    assert run(["hash", "f"]) == 73
    assert capsys.readouterr().err == "tdx: full: make room\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()], ids=["Ctrl-C", "abort"])
def test_an_interrupt_is_75(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, error)
    assert run(["hash", "f"]) == 75
    assert capsys.readouterr().err == "tdx: interrupted\n"


def test_what_nobody_expected_is_70_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TDX_DEBUG", raising=False)
    fail_with(monkeypatch, ZeroDivisionError("division\nby zero"))
    assert run(["hash", "f"]) == 70
    error = capsys.readouterr().err
    assert (
        error
        == "tdx: this should not happen: ZeroDivisionError: division by zero (TDX_DEBUG=1 shows where)\n"
    )


def test_a_traceback_is_shown_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TDX_DEBUG", "1")
    fail_with(monkeypatch, ZeroDivisionError())
    assert run(["hash", "f"]) == 70
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("tdx: this should not happen: ZeroDivisionError (TDX_DEBUG=1 shows where)\n")


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"tdx {VERSION}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: tdx {name} ")


def test_output_that_nobody_reads_ends_it_quietly(tdx: Tdx, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    pipe = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    pipe.wait()
    assert pipe.stdin is not None
    done = tdx("hash", file, stdout=pipe.stdin)
    pipe.stdin.close()
    assert (done.returncode, done.stderr) == (74, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_onto_a_full_disk_is_74(tdx: Tdx, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    with Path("/dev/full").open("w") as full:
        done = tdx("hash", file, stdout=full)
    assert (done.returncode, done.stderr) == (74, "tdx: No space left on device: standard output\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_traceback_that_cannot_be_written_is_still_70(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TDX_DEBUG", "1")
    fail_with(monkeypatch, ZeroDivisionError())
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115  closing it fails
    monkeypatch.setattr(sys, "stderr", full)
    assert run(["hash", "f"]) == 70
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_closed_outputs_are_no_failure(tdx: Tdx, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    done = subprocess.run(
        ["sh", "-c", '"$@" >&- 2>&-', "sh", sys.executable, "-P", "-m", "tdx_cli", "hash", str(file)],
        env=tdx.env,
        check=False,
    )
    assert done.returncode == 0


def test_a_command_imports_only_what_it_needs(tdx: Tdx) -> None:
    script = (
        "import sys; from tdx_cli.main import run; run(['--version']);"
        "sys.exit(' '.join({'asyncio', 'rich', 'uvloop', 'xxhash', 'tdx_cli.push'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=tdx.env, capture_output=True, text=True, check=False
    )
    assert done.stderr == "\n"
