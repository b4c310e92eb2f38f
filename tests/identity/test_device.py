from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from support.devices import make, of_unknown_kind
from support.together import together, with_a_start
from tdx.errors import ConfigError
from tdx.identity.device import Device, key_of, load_or_make, unfit, verify

VERSION_3 = b"\xa0\x03\x02\x01\x02"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return load_or_make(tmp_path / "device", "laptop")


def test_a_device_stays_the_same(device: Device, tmp_path: Path) -> None:
    assert load_or_make(tmp_path / "device", "renamed") == device
    assert load_or_make(tmp_path / "another", "laptop").key != device.key


def test_its_key_is_the_hash_of_its_public_key(device: Device) -> None:
    public = x509.load_der_x509_certificate(device.certificate).public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert device.key == key_of(device.certificate) == hashlib.sha256(spki).hexdigest()


def test_only_its_user_can_read_the_key(device: Device) -> None:
    assert stat.S_IMODE(device.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(device.key_file.parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in device.key_file.parent.iterdir()) == ["certificate.pem", "key.pem"]
    assert b"PRIVATE" not in device.certificate_file.read_bytes()


def test_its_certificate_speaks_for_itself_alone_and_does_not_expire(device: Device) -> None:
    certificate = x509.load_der_x509_certificate(device.certificate)
    certificate.verify_directly_issued_by(certificate)
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == device.key
    assert certificate.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(days=365)
    extensions = certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    usages = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usages == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own
    assert unfit(device.certificate, time.time()) is None


@pytest.mark.parametrize("name", ["", "a" * 300, "new\nline", "\udcff", "höst"])
def test_any_host_name_will_do(tmp_path: Path, name: str) -> None:
    assert unfit(load_or_make(tmp_path / "device", name).certificate, time.time()) is None


def test_a_signature_holds_for_that_key_and_those_bytes_only(device: Device, tmp_path: Path) -> None:
    signature = device.sign(b"data")
    assert verify(device.certificate, signature, b"data")
    assert not verify(device.certificate, signature, b"other")
    assert not verify(device.certificate, signature[:-1] + bytes([signature[-1] ^ 1]), b"data")
    assert not verify(device.certificate, b"", b"data")
    assert not verify(load_or_make(tmp_path / "other", "x").certificate, signature, b"data")
    assert not verify(b"no certificate", signature, b"data")


def test_many_processes_at_once_make_one_key(tmp_path: Path) -> None:
    # Each takes its time over the key, so that whoever does not wait for the others makes one more.
    script = """
import sys, time
from pathlib import Path
from tdx.identity import device
make = device._make
device._make = lambda name: (time.sleep(0.2), make(name))[1]
print(device.load_or_make(Path(sys.argv[1]), "x").key)
"""
    folder = tmp_path / "state" / "device"
    printed = together([sys.executable, "-c", with_a_start(script), str(folder)], 4)
    assert printed == [load_or_make(folder, "x").key + "\n"] * 4


def test_a_key_that_others_may_read_is_refused(device: Device) -> None:
    device.key_file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"key\.pem: others may read it"):
        load_or_make(device.key_file.parent, "x")
    with pytest.raises(ConfigError, match="others may read it"):
        device.sign(b"data")


def test_a_key_of_another_user_is_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(ConfigError, match="belongs to another user"):
        load_or_make(device.key_file.parent, "x")


def test_a_link_in_place_of_the_key_is_refused(device: Device, tmp_path: Path) -> None:
    device.key_file.rename(tmp_path / "elsewhere")
    device.key_file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"cannot read .*key\.pem"):
        load_or_make(device.key_file.parent, "x")


def test_a_folder_in_which_others_may_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(ConfigError, match="others may change it"):
        load_or_make(folder, "x")
    assert list(folder.iterdir()) == []


def test_a_key_without_its_certificate_is_not_given_another(device: Device) -> None:
    device.certificate_file.unlink()
    with pytest.raises(ConfigError, match=r"certificate of .*key\.pem is missing"):
        load_or_make(device.key_file.parent, "x")
    assert not device.certificate_file.exists()


def test_damaged_files_are_named(device: Device) -> None:
    device.key_file.write_bytes(b"-----BEGIN NONSENSE")
    with pytest.raises(ConfigError, match=r"key\.pem: is damaged"):
        device.sign(b"data")
    device.certificate_file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"certificate\.pem: is damaged"):
        load_or_make(device.key_file.parent, "x")


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    folder.mkdir(mode=0o700)
    for name in ("key.pem.new", "certificate.pem.new", "certificate.pem"):
        (folder / name).write_bytes(b"half of it")
    device = load_or_make(folder, "x")
    assert verify(device.certificate, device.sign(b"data"), b"data")
    assert sorted(path.name for path in folder.iterdir()) == ["certificate.pem", "key.pem"]


def test_a_certificate_that_could_vouch_for_others_is_unfit() -> None:
    assert "vouch for other" in (unfit(make("x", ca=True).der, time.time()) or "")
    assert "does not say" in (unfit(make("x", ca=None).der, time.time()) or "")
    assert unfit(make("x").der, time.time()) is None


def test_a_weak_key_is_unfit() -> None:
    weak = make("x", key=rsa.generate_private_key(65537, 1024)).der
    assert unfit(weak, time.time()) == "its key has only 1024 bits"
    weak = make("x", key=ec.generate_private_key(ec.SECP224R1())).der
    assert unfit(weak, time.time()) == "its key has only 224 bits"
    assert unfit(make("x", key=rsa.generate_private_key(65537, 2048)).der, time.time()) is None


def test_a_certificate_outside_its_validity_is_unfit() -> None:
    der = make("x").der
    assert "is valid from" in (unfit(der, time.time() + 2 * 86400) or "")
    assert "is valid from" in (unfit(der, time.time() - 2 * 86400) or "")


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x30\x82\xff\xff"])
def test_what_is_no_certificate_is_unfit_and_has_no_key(data: bytes) -> None:
    assert unfit(data, 0.0) == "it is no X.509 certificate that can be read"
    with pytest.raises(ValueError, match="parsing asn1"):
        key_of(data)


def test_a_kind_of_key_that_nobody_knows_is_none() -> None:
    der = of_unknown_kind(make("x").der)
    assert unfit(der, time.time()) == "it is no X.509 certificate that can be read"
    with pytest.raises(ValueError, match="key type"):
        key_of(der)
    assert not verify(der, b"", b"")


def test_a_version_that_there_is_not_is_none() -> None:
    der = make("x").der.replace(VERSION_3, VERSION_3[:-1] + b"\x0e")
    assert unfit(der, time.time()) == "it is no X.509 certificate that can be read"
    with pytest.raises(ValueError, match="version"):
        key_of(der)


def test_a_subject_that_cannot_be_read_makes_it_unfit() -> None:
    der = make("x").der.replace(b"\x0c\x01x", b"\x0c\x01\x80")  # no UTF-8
    assert unfit(der, time.time()) == "it is no X.509 certificate that can be read"


def test_keys_of_other_kinds_sign_nothing_here() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
        .public_bytes(Encoding.DER)
    )
    assert unfit(certificate, time.time()) is None
    assert not verify(certificate, key.sign(b"data"), b"data")
