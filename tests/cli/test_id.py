from __future__ import annotations

import json
import ssl
from pathlib import Path

from support.commands import Tdx
from tdx.identity.device import key_of


def test_a_device_is_made_once_and_shown(tdx: Tdx, tmp_path: Path) -> None:
    first, second = tdx("id"), tdx("id", "--json")
    assert (first.returncode, first.stderr) == (second.returncode, second.stderr) == (0, "")
    facts = json.loads(second.stdout)
    file = tmp_path / "state" / "device" / "certificate.pem"
    assert first.stdout == f"key          {facts['key']}\ncertificate  {file}\n"
    assert list(facts) == ["event", "key", "certificate", "certificate_file"]
    assert facts["certificate_file"] == str(file)
    assert facts["certificate"] == file.read_text()


def test_the_certificate_is_printed_as_it_is_and_the_key_is_its(tdx: Tdx) -> None:
    pem = tdx("id", "--certificate").stdout
    assert key_of(ssl.PEM_cert_to_DER_cert(pem)) == json.loads(tdx("id", "--json").stdout)["key"]
    assert "PRIVATE" not in pem


def test_state_names_the_folder(tdx: Tdx, tmp_path: Path) -> None:
    assert str(tmp_path / "other") in tdx("id", "--state", tmp_path / "other").stdout
    assert not (tmp_path / "state").exists()


def test_a_key_that_others_may_read_is_78(tdx: Tdx, tmp_path: Path) -> None:
    tdx("id")
    key = tmp_path / "state" / "device" / "key.pem"
    key.chmod(0o644)
    done = tdx("id")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"tdx: {key}: others may read it; ")


def test_two_ways_of_printing_the_certificate_are_64(tdx: Tdx) -> None:
    assert tdx("id", "--json", "--certificate").returncode == 64
