from __future__ import annotations

import ssl
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from support.devices import context_with, make, meet, trusted
from tdx.errors import ConfigError
from tdx.identity.tls import TlsIdentities, identity_of
from tdx.identity.trust import Trusted
from tdx.model import Identity, Owner


def introduce(one: TlsIdentities, other: TlsIdentities, names: tuple[str, str] = ("one", "other")) -> None:
    """Each trusts the other from now on."""
    one.trust.add(trusted(other.device, names[1]))
    other.trust.add(trusted(one.device, names[0]))


@pytest.fixture
def here(tmp_path: Path) -> TlsIdentities:
    return TlsIdentities(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> TlsIdentities:
    return TlsIdentities(tmp_path / "there")


@pytest.fixture
def stranger(tmp_path: Path) -> TlsIdentities:
    return TlsIdentities(tmp_path / "stranger")


def found(identities: TlsIdentities, name: str) -> Trusted:
    entry = identities.find(name)
    assert entry is not None
    return entry


def test_two_that_trust_each_other_meet_and_know_who_it_is(here: TlsIdentities, there: TlsIdentities) -> None:
    introduce(here, there)
    met = meet(there.server_context(), here.client_context(found(here, "other")))
    assert met.well, met
    owner = Owner(f"tls:{here.device.key}")
    assert there.whois(met.seen) == Identity(owner, "tls", "", "one", own=True)
    assert here.whois(met.seen) is None


def test_several_trusted_devices_are_told_apart(
    here: TlsIdentities, there: TlsIdentities, stranger: TlsIdentities
) -> None:
    introduce(here, there, ("here", "there"))
    introduce(stranger, there, ("friend", "there"))
    for client, name in ((here, "here"), (stranger, "friend"), (here, "here")):
        met = meet(there.server_context(), client.client_context(found(client, "there")))
        assert met.well, met
        identity = there.whois(met.seen)
        assert identity is not None
        assert (identity.node, identity.owner) == (name, f"tls:{client.device.key}")


def test_a_stranger_gets_in_nowhere(
    here: TlsIdentities, there: TlsIdentities, stranger: TlsIdentities
) -> None:
    introduce(here, there)
    there_as_seen = found(here, "other")
    met = meet(there.server_context(), stranger.client_context(there_as_seen))
    assert isinstance(met.server, ssl.SSLError)
    assert met.answer == b""
    stranger.trust.add(trusted(here.device, "one"))
    met = meet(stranger.server_context(), here.client_context(there_as_seen))
    assert isinstance(met.client, ssl.SSLCertVerificationError)
    assert met.answer == b""


def test_who_shows_no_certificate_gets_in_nowhere(here: TlsIdentities, there: TlsIdentities) -> None:
    introduce(here, there)
    met = meet(there.server_context(), context_with(None))
    assert isinstance(met.server, ssl.SSLError)
    assert not met.well
    assert there.whois(None) is None


def test_a_receiver_that_trusts_nobody_lets_nobody_in(here: TlsIdentities, there: TlsIdentities) -> None:
    here.trust.add(trusted(there.device, "other"))
    met = meet(there.server_context(), here.client_context(found(here, "other")))
    assert isinstance(met.server, ssl.SSLError)
    assert met.answer == b""


def test_the_right_name_with_the_wrong_key_gets_in_nowhere(
    here: TlsIdentities, there: TlsIdentities, tmp_path: Path
) -> None:
    friend, impostor = make("friend"), make("friend")
    there.trust.add(friend.trusted("friend"))
    assert meet(there.server_context(), context_with(friend.files(tmp_path / "right"))).well
    files = impostor.files(tmp_path / "wrong")
    met = meet(there.server_context(), context_with(files))
    assert isinstance(met.server, ssl.SSLCertVerificationError)
    met = meet(context_with(files, ssl.PROTOCOL_TLS_SERVER), here.client_context(friend.trusted("friend")))
    assert isinstance(met.client, ssl.SSLCertVerificationError)


def test_a_trusted_device_cannot_make_up_another(
    here: TlsIdentities, there: TlsIdentities, tmp_path: Path
) -> None:
    introduce(here, there)
    key = load_pem_private_key(here.device.key_file.read_bytes(), None)
    issuer = x509.load_der_x509_certificate(here.device.certificate).subject
    minted = make("minted", signed_by=(issuer, key))
    certificate, key_file = minted.files(tmp_path / "minted")
    for chain in (b"", here.device.certificate_file.read_bytes()):
        certificate.write_bytes(certificate.read_bytes() + chain)
        met = meet(there.server_context(), context_with((certificate, key_file)))
        assert isinstance(met.server, ssl.SSLCertVerificationError)
        assert met.answer == b""
    assert there.whois(minted.der) is None


def test_of_what_an_authority_issued_only_what_is_trusted_gets_in(
    there: TlsIdentities, tmp_path: Path
) -> None:
    authority = make("authority", ca=True)
    issuer = authority.certificate.subject, authority.key
    friend, stranger = (make(name, signed_by=issuer) for name in ("friend", "stranger"))
    there.trust.add(friend.trusted("friend"))
    assert meet(there.server_context(), context_with(friend.files(tmp_path / "friend"))).well
    met = meet(there.server_context(), context_with(stranger.files(tmp_path / "stranger")))
    assert isinstance(met.server, ssl.SSLCertVerificationError)


def test_a_certificate_outside_its_validity_is_refused_though_trusted(
    there: TlsIdentities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make("old", begins=timedelta(days=-3), ends=timedelta(days=-1))
    with pytest.raises(ConfigError, match="is valid from"):
        there.trust.add(old.trusted("old"))
    monkeypatch.setattr("tdx.identity.device.unfit", lambda *_: None)
    there.trust.add(old.trusted("old"))
    met = meet(there.server_context(), context_with(old.files(tmp_path / "old")))
    assert isinstance(met.server, ssl.SSLCertVerificationError)
    assert met.server.verify_message == "certificate has expired"


def test_tls_1_2_is_refused(here: TlsIdentities, there: TlsIdentities) -> None:
    introduce(here, there)
    device = here.device
    client = context_with((device.certificate_file, device.key_file))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    met = meet(there.server_context(), client)
    assert isinstance(met.server, ssl.SSLError)
    assert "UNSUPPORTED_PROTOCOL" in str(met.server)
    device = there.device
    server = context_with((device.certificate_file, device.key_file), ssl.PROTOCOL_TLS_SERVER)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    met = meet(server, here.client_context(found(here, "other")))
    assert met.client is not None
    assert met.answer == b""


def test_who_is_removed_is_somebody_no_longer_and_gets_in_no_more(
    here: TlsIdentities, there: TlsIdentities
) -> None:
    introduce(here, there)
    before = there.server_context()
    there.trust.remove("one")
    assert there.whois(here.device.certificate) is None
    assert there.server_context() is not before
    met = meet(there.server_context(), here.client_context(found(here, "other")))
    assert isinstance(met.server, ssl.SSLCertVerificationError)


def test_who_is_added_gets_in_at_once(here: TlsIdentities, there: TlsIdentities) -> None:
    there.server_context()
    # By another process, as `tdx pair` does while the receiver runs.
    introduce(here, TlsIdentities(there.trust.path.parent))
    assert meet(there.server_context(), here.client_context(found(here, "other"))).well


def test_the_context_is_made_anew_only_after_a_change(here: TlsIdentities, there: TlsIdentities) -> None:
    before = there.server_context()
    assert there.server_context() is before
    introduce(here, there)
    after = there.server_context()
    assert after is not before
    assert there.server_context() is after


def test_no_session_outlives_its_connection_and_only_a_senders_kernel_may_take_over(
    here: TlsIdentities, there: TlsIdentities
) -> None:
    introduce(here, there)
    server = there.server_context()
    assert server.num_tickets == 0
    client = here.client_context(found(here, "other"))
    # A receiver's kernel would take a body that comes beneath TLS for records.
    assert (server.options & 8, client.options & 8) == (0, 8)
    for context in (server, client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED


def test_the_key_counts_and_not_the_certificate_around_it(there: TlsIdentities) -> None:
    first = make("first")
    again = make("again", key=first.key)
    there.trust.add(first.trusted("first"))
    assert there.whois(again.der) == identity_of(first.trusted("first"))
    assert there.whois(make("first").der) is None
    assert there.whois(b"garbage") is None


def test_a_damaged_trust_file_lets_nobody_in(here: TlsIdentities, there: TlsIdentities) -> None:
    introduce(here, there)
    there.trust.path.write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"trust\.json"):
        there.server_context()
    with pytest.raises(ConfigError, match=r"trust\.json"):
        there.whois(here.device.certificate)


def test_files_of_the_device_that_do_not_belong_together_are_named(
    here: TlsIdentities, there: TlsIdentities
) -> None:
    there.device.key_file.write_bytes(here.device.key_file.read_bytes())
    with pytest.raises(ConfigError, match="do not belong together or are damaged"):
        there.server_context()


def test_peers_are_listed_as_they_are_trusted(here: TlsIdentities, there: TlsIdentities) -> None:
    assert here.peers() == []
    here.trust.add(trusted(there.device, "Desk", "192.0.2.1:8390", "desk.example"))
    (peer,) = here.peers()
    assert peer.names == ("desk",)
    assert peer.addresses == ("192.0.2.1:8390", "desk.example")
    assert peer.identity == here.whois(there.device.certificate)
    assert peer.online is None


def test_to_use_a_device_that_is_there_needs_no_heavy_library(
    here: TlsIdentities, there: TlsIdentities
) -> None:
    introduce(here, there)
    script = (
        "import sys; from pathlib import Path; from tdx.identity.tls import TlsIdentities\n"
        "assert 'ssl' not in sys.modules\n"
        "tls = TlsIdentities(Path(sys.argv[1])); other = tls.find('other')\n"
        "assert 'ssl' not in sys.modules\n"
        "tls.client_context(other); tls.server_context(); assert tls.whois(other.certificate)\n"
        "assert 'cryptography' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(here.trust.path.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
