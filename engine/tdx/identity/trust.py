"""Which other devices are trusted: names, keys and certificates, in one file."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tdx.errors import ConfigError, UnknownPeer, UsageError
from tdx.identity import device, private
from tdx.identity.rows import pack
from tdx.model import shown

TRUST_FILE: Final = "trust.json"
OWNER_PREFIX: Final = "tls:"
LONGEST_NAME: Final = 64

_FORMAT: Final = 1
_LATEST: Final = 253_370_764_800
"""The beginning of the year 9999, in any zone a date that can be shown."""
_REASON: Final = 200
_ADDRESS: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_ZONED: Final = re.compile(r"[0-9A-Fa-f:.]+(?:%[\w.-]+)?", re.ASCII)
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Trusted:
    """A device that was paired or added by hand.

    ``name`` is what this machine calls it (see :func:`check_name`), ``key`` its
    :func:`tdx.identity.device.key_of`, ``certificate`` is DER, ``addresses`` are ``HOST`` or
    ``HOST:PORT``, the best first, ``added`` is in seconds since the Unix epoch.
    """

    name: str
    key: str
    certificate: bytes
    addresses: tuple[str, ...]
    added: float


def name_fault(name: str) -> str | None:
    """What is wrong with ``name`` as the name of a device, in words; None where nothing is."""
    if not name or len(name) > LONGEST_NAME:
        return f"a name has 1 to {LONGEST_NAME} characters"
    if not name.isascii() or not name[0].isalnum() or not all(c.isalnum() or c in "-_." for c in name):
        return "a name begins with a letter or digit and holds only those, '-', '_' and '.'"
    if _is_key(name) or _is_address(name) or name.lower() == "localhost":
        return "a name must not look like a key or an address"
    return None


def check_name(name: str) -> str:
    """``name``, if a device can be called that; UsageError otherwise."""
    fault = name_fault(name)
    if fault is not None:
        raise UsageError(f"{shown(name)!r} cannot name a device: {fault}")
    return name


def check_address(text: str) -> str:
    """``text``, if it is ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``; UsageError otherwise."""
    found = _ADDRESS.fullmatch(text)
    bare = _is_numeric(text)
    if not bare and (found is None or (found["v6"] is not None and not _is_numeric(found["v6"]))):
        raise UsageError(f"{shown(text)!r} is not an address; write HOST, HOST:PORT or [IPV6]:PORT")
    if found is not None and found["port"] is not None and not 0 < int(found["port"]) < 65536:
        raise UsageError(f"{shown(text)!r} names an impossible port")
    return text


def unknown(name_or_key: str) -> UnknownPeer:
    return UnknownPeer(f"no trusted device is called {shown(name_or_key)}; `tdx trust list` shows them")


class TrustStore:
    """The trusted devices of one state directory. Threads and processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TRUST_FILE
        self._lock = threading.Lock()
        self._seen: tuple[Hashable, tuple[Trusted, ...]] | None = None

    def entries(self) -> tuple[Trusted, ...]:
        """All of them, in the order in which they were added. ConfigError where the file is
        damaged or others may change it: nobody is trusted then."""
        stamp = self.stamp()
        with self._lock:
            if self._seen is not None and self._seen[0] == stamp:
                return self._seen[1]
        # A file that is replaced after its stamp was taken is read once more next time.
        entries = self._read()
        with self._lock:
            self._seen = stamp, entries
        return entries

    def find(self, name_or_key: str) -> Trusted | None:
        """The device of that name (in any case), key, or owner ``tls:KEY``."""
        wanted = name_or_key.removeprefix(OWNER_PREFIX).lower()
        return next((each for each in self.entries() if wanted in (each.name.lower(), each.key)), None)

    def add(self, trusted: Trusted, *, replace: bool = False) -> None:
        """Trust one more device from now on.

        ``replace``: the entry of the same key, if any, is replaced; otherwise it is an error.
        The name of another key is never taken over. UsageError for a name that is taken or
        cannot be one and for what is no address, ConfigError for a certificate that must not be trusted.
        """
        _check_entry(trusted)

        def change(before: Sequence[Trusted]) -> list[Trusted]:
            others = [each for each in before if each.key != trusted.key]
            if len(others) < len(before) and not replace:
                same = next(each for each in before if each.key == trusted.key)
                raise UsageError(f"this device is trusted already, as {same.name}")
            _check_free(trusted, others)
            return [*others, trusted]

        self._change(change)

    def check(self, trusted: Trusted) -> None:
        """Raise what :meth:`add` with ``replace`` would, and change nothing."""
        _check_entry(trusted)
        _check_free(trusted, [each for each in self.entries() if each.key != trusted.key])

    def remove(self, name_or_key: str) -> Trusted:
        """No longer trust a device; it. UnknownPeer where none is called that."""
        wanted = name_or_key.removeprefix(OWNER_PREFIX).lower()
        removed: list[Trusted] = []

        def change(before: Sequence[Trusted]) -> list[Trusted]:
            removed.extend(each for each in before if wanted in (each.name.lower(), each.key))
            if not removed:
                raise unknown(name_or_key)
            return [each for each in before if each not in removed]

        self._change(change)
        return removed[0]

    def stamp(self) -> Hashable:
        """Something that differs after every change of the file. Costs one stat."""
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from error
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _change(self, change: Callable[[Sequence[Trusted]], list[Trusted]]) -> None:
        private.make_folder(self.path.parent)
        with private.locked(self.path.parent):
            private.write(self.path, _written(change(self._read())))

    def _read(self) -> tuple[Trusted, ...]:
        found = private.read(self.path, private.NOBODY_ELSE_WRITES)
        if found is None:
            return ()
        try:
            return _parsed(found[0])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = shown(str(error))[:_REASON]
            raise ConfigError(
                f"{self.path}: is damaged ({reason}); nobody is trusted until it is put back from a backup, "
                "or removed to start with no trusted devices"
            ) from error


def _check_entry(trusted: Trusted) -> None:
    check_name(trusted.name)
    for address in trusted.addresses:
        check_address(address)
    reason = device.unfit(trusted.certificate, time.time())
    if reason is None and device.key_of(trusted.certificate) != trusted.key:
        reason = f"its key is not {trusted.key}"
    if reason is not None:
        raise ConfigError(f"the certificate of {trusted.name} cannot be trusted: {reason}")


def _check_free(trusted: Trusted, others: Sequence[Trusted]) -> None:
    """UsageError where another device of ``others`` has the name already, or a certificate that
    would hide this one: OpenSSL looks them up by their subjects."""
    for other in others:
        if other.name.lower() == trusted.name.lower():
            raise UsageError(
                f"another device is called {other.name} already (key {other.key}); choose another name, "
                f"or remove that one first: tdx trust remove {other.name}"
            )
        if device.subject_of(other.certificate) == device.subject_of(trusted.certificate):
            raise UsageError(f"the certificate has the same subject as the one of {other.name}")


def _written(entries: Sequence[Trusted]) -> bytes:
    document = {
        "format": _FORMAT,
        "trusted": [
            {
                "name": each.name,
                "key": each.key,
                "addresses": list(each.addresses),
                "added": each.added,
                "certificate": base64.b64encode(each.certificate).decode(),
            }
            for each in entries
        ],
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def _parsed(data: bytes) -> tuple[Trusted, ...]:
    """ValueError, KeyError or TypeError for anything that :func:`_written` does not write."""
    document: Any = json.loads(data)
    if document["format"] != _FORMAT:
        raise ValueError(f"format {document['format']!r} is not known")
    entries = tuple(_entry(each) for each in document["trusted"])
    for facts in ([each.name.lower() for each in entries], [each.key for each in entries]):
        if len(set(facts)) != len(facts):
            raise ValueError("a name or key is there twice")
    return entries


def _entry(values: Any) -> Trusted:
    name, key, addresses, added = values["name"], values["key"], values["addresses"], values["added"]
    if not isinstance(name, str) or name_fault(name) is not None:
        raise ValueError(f"not a name: {name!r}")
    if not isinstance(key, str) or not _is_key(key) or key != key.lower():
        raise ValueError(f"not a key: {key!r}")
    if isinstance(added, bool) or not isinstance(added, int | float) or not 0 <= added < _LATEST:
        raise ValueError(f"not a time: {added!r}")
    certificate = base64.b64decode(values["certificate"], validate=True)
    if not certificate:
        raise ValueError(f"{name} has no certificate")
    return Trusted(name, key, certificate, _addresses(addresses), float(added))


def _addresses(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"not a list: {value!r}")
    items: list[Any] = [*value]
    texts = tuple(item for item in items if isinstance(item, str))
    if len(texts) != len(items):
        raise ValueError(f"not a list of strings: {value!r}")
    try:
        return tuple(map(check_address, texts))
    except UsageError as error:
        raise ValueError(error.message) from None


def _is_numeric(text: str) -> bool:
    # What stands for a zone could otherwise be anything, line breaks too.
    return pack(text) is not None and _ZONED.fullmatch(text) is not None


def _is_address(text: str) -> bool:
    """Whether the system takes ``text`` for an address, as it also does 127.1, 0x7f000001 and 1."""
    try:
        socket.inet_aton(text)
    except OSError:
        return pack(text) is not None
    return True


def _is_key(text: str) -> bool:
    return len(text) == device.KEY_DIGITS and set(text.lower()) <= _HEX
