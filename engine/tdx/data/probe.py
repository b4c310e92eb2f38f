"""Which pump receives a body: forced by name, or the fastest that works here.

Its counterpart is :func:`tdx.data.send.choose_send`; apart, so that a sender loads no receiving pump.
"""

from __future__ import annotations

import os
from typing import Final

from tdx.data.port import Body, DescriptorSink, RawBody, ReceivePump, Sink
from tdx.data.receive import BufferedReceive
from tdx.data.splice import SpliceReceive
from tdx.errors import UsageError

RECEIVE_PUMPS: Final = ("auto", "splice", "buffered")
"""Names for the receiver (``tdx serve --pump``)."""


def choose_receive(wish: str | None, sink: Sink, body: Body) -> ReceivePump:
    """The pump to receive ``body`` into ``sink`` with; None and "auto" leave the choice to measurement
    (docs/decisions/001-pumps.md). UsageError for a name that does not exist or cannot work here."""
    if wish == "splice":
        if not hasattr(os, "splice"):
            raise UsageError("--pump splice cannot work: this system has no splice")
        if not isinstance(sink, DescriptorSink):
            raise UsageError("--pump splice cannot work: this store offers no file descriptors")
        if not isinstance(body, RawBody):
            # A chunked body has to be parsed, a TLS one decrypted: forcing splice must not refuse them.
            return BufferedReceive()
        return SpliceReceive()
    if wish not in (None, *RECEIVE_PUMPS):
        raise UsageError(f"no receiving pump is called {wish!r}; choose one of {', '.join(RECEIVE_PUMPS)}")
    return BufferedReceive()
