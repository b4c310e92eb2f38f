"""Many TLS records at one call, by OpenSSL's own loop.

Python's ssl reads one record of 16 KiB at a call, and at each gives the GIL away and has to get it back
from the thread that writes. OpenSSL has a loop of its own, a BIO_f_buffer over a BIO_f_ssl: asked for more
than its buffer holds, it goes on reading into the caller's memory until that is full or a read does not
succeed, and keeps nothing itself (crypto/bio/bf_buff.c).

ssl does not tell where its SSL is, so it is taken from the object's memory. That is done only where all that
is around it is what it has to be; elsewhere there is no :class:`BulkRead`, and ssl goes on record by record.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import ssl
import sys
import weakref
from functools import cache
from typing import Any, Final

BUFFERED: Final = 4096
"""Bytes that a BIO_f_buffer holds: asked for no more than that, it would read ahead, into itself."""

_OPENSSL: Final = (3, 4)
"""Major versions whose loop is known to be so."""

_SET_SSL: Final = 109
"""BIO_C_SET_SSL."""

_POINTER: Final = ctypes.sizeof(ctypes.c_void_p)


class _Library:
    """The functions of the very library that ssl was linked with. AttributeError where it hides one."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self.version = self._function("OpenSSL_version_num", ctypes.c_ulong)
        self.descriptor = self._function("SSL_get_fd", number, pointer)
        self.over_ssl = self._function("BIO_f_ssl", pointer)
        self.over_buffer = self._function("BIO_f_buffer", pointer)
        self.new = self._function("BIO_new", pointer, pointer)
        self.control = self._function("BIO_ctrl", ctypes.c_long, pointer, number, ctypes.c_long, pointer)
        self.push = self._function("BIO_push", pointer, pointer, pointer)
        self.read = self._function("BIO_read", number, pointer, pointer, number)
        self.free = self._function("BIO_free_all", None, pointer)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self._library[name]
        function.restype = result
        function.argtypes = arguments
        return function


class BulkRead:
    """Reads what has come over one TLS socket, which must not block; as ssl does, in one thread at a time."""

    def __init__(self, sock: ssl.SSLSocket, layer: object, library: _Library, address: int) -> None:
        self._sock = sock
        # Keeps the SSL alive, whatever becomes of the socket.
        self._layer = layer
        self._read = library.read
        records = library.new(library.over_ssl())
        self._bio = library.push(library.new(library.over_buffer()), records)
        # Not to be closed with the BIO: the SSL is ssl's.
        library.control(records, _SET_SSL, 0, address)
        weakref.finalize(self, library.free, self._bio).atexit = False

    def __call__(self, view: memoryview) -> int:
        """Fill ``view``, more than :data:`BUFFERED` bytes long, with what has come; how many bytes.

        Fewer than ``len(view)`` mean that a read did not succeed. Why not, is not told: the caller
        must call SSLSocket.read at once, in the same thread, which waits or raises what has happened.
        """
        if _layer_of(self._sock) is not self._layer:
            return 0
        memory = ctypes.c_char.from_buffer(view)
        got: int = self._read(self._bio, ctypes.addressof(memory), len(view))
        return max(0, got)


def bulk_read(sock: ssl.SSLSocket) -> BulkRead | None:
    """None where the address of this socket's SSL is not known beyond doubt, and where it blocks."""
    library, layer = _library(), _layer_of(sock)
    if library is None or layer is None or os.get_blocking(sock.fileno()):
        return None
    address = _address_in(layer, sock)
    if address is None or library.descriptor(address) != sock.fileno():
        return None
    return BulkRead(sock, layer, library, address)


def _layer_of(sock: ssl.SSLSocket) -> object:
    return getattr(sock, "_sslobj", None)


def _address_in(layer: object, sock: ssl.SSLSocket) -> int | None:
    """``struct PySSLSocket`` begins with a weak reference to its socket, its SSL, and its context:
    the SSL is what lies between two addresses that are known."""
    kind, begin = type(layer), object.__basicsize__
    named = (kind.__module__, kind.__name__) == ("_ssl", "_SSLSocket")
    if not named or kind.__basicsize__ < begin + 3 * _POINTER:
        return None
    owner, address, context = (ctypes.c_void_p * 3).from_address(id(layer) + begin)
    # The one weak reference without a callback that CPython makes for an object.
    if owner != id(weakref.ref(sock)) or context != id(sock.context):
        return None
    return int(address) if address else None


@cache
def _library() -> _Library | None:
    known = ssl.OPENSSL_VERSION.startswith("OpenSSL ") and ssl.OPENSSL_VERSION_INFO[0] in _OPENSSL
    if sys.implementation.name != "cpython" or not known:
        return None
    path = getattr(importlib.import_module("_ssl"), "__file__", None)
    if path is None:
        return None
    try:
        library = _Library(ctypes.CDLL(path))
    except (OSError, AttributeError):
        return None
    return library if library.version() == ssl.OPENSSL_VERSION_NUMBER else None
