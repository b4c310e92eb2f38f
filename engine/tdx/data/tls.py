"""The body of a request over TLS."""

from __future__ import annotations

from tdx.data.body import LengthBody


class TlsBody(LengthBody):
    """A body of known length on an SSLSocket whose handshake is done.

    No :class:`tdx.data.port.RawBody`: what the descriptor holds is ciphertext, which nothing may splice.
    """
