from __future__ import annotations

import os
from pathlib import Path

import pytest

from tdx.integrity import MIB, Root, cut, digest_of
from tdx.model import Span
from tdx_cli.main import run

CONTENT = os.urandom(9 * MIB + 17)


def root_of(content: bytes, extent_size: int) -> str:
    spans = cut(Span(0, len(content)), extent_size) if content else ()
    digests = [digest_of(content[span.start : span.end]) for span in spans]
    return str(Root.over(digests, len(content), extent_size))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f.bin"
    path.write_bytes(CONTENT)
    return path


def test_hash_prints_root_and_name(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hash", str(file)]) == 0
    assert capsys.readouterr().out == f"{root_of(CONTENT, 4 * MIB)}  {file}\n"


def test_an_empty_file_has_a_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert run(["hash", str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out.startswith(root_of(b"", 4 * MIB))


def test_a_file_that_is_missing_does_not_keep_the_others_from_being_hashed(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["hash", "/no/such", str(file)]) == 66
    output = capsys.readouterr()
    assert output.out.endswith(f"  {file}\n")
    assert output.err == "tdx: /no/such: cannot be read: No such file or directory\n"


def test_a_folder_is_66(tmp_path: Path) -> None:
    assert run(["hash", str(tmp_path)]) == 66


def test_a_file_that_has_the_root_is_verified(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(file), root_of(CONTENT, 4 * MIB)]) == 0
    assert capsys.readouterr().out == f"{file}: OK\n"


def test_quiet_says_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "-q", str(file), root_of(CONTENT, 4 * MIB)]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_root_over_other_extents_is_verified_in_those(file: Path) -> None:
    assert run(["verify", str(file), root_of(CONTENT, 16 * MIB)]) == 0


@pytest.mark.parametrize(
    "other",
    [CONTENT[:-1], CONTENT + b"\0", bytes([CONTENT[0] ^ 1]) + CONTENT[1:], b""],
    ids=["short", "long", "flipped", "empty"],
)
def test_another_content_is_65(other: bytes, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = root_of(CONTENT, 4 * MIB)
    file.write_bytes(other)
    assert run(["verify", str(file), root]) == 65
    error = capsys.readouterr().err
    assert error == f"tdx: {file}: does not match: its root is {root_of(other, 4 * MIB)}, not {root}\n"


def test_verifying_what_is_missing_is_66() -> None:
    assert run(["verify", "/no/such", root_of(b"", 4 * MIB)]) == 66
