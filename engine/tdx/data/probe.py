"""Which pump moves a body: forced by name, or the fastest that works here."""

from __future__ import annotations

import os
import stat
from typing import Final

from tdx.data.port import Body, DescriptorSink, RawBody, ReceivePump, SendPump, Sink
from tdx.data.receive import BufferedReceive
from tdx.data.send import BufferedSend, SendfileSend
from tdx.data.splice import SpliceReceive
from tdx.errors import UsageError

AUTO: Final = "auto"
SEND_PUMPS: Final = (AUTO, "sendfile", "buffered")
"""Names for the sender (``tdx push --pump``)."""
RECEIVE_PUMPS: Final = (AUTO, "splice", "buffered")
"""Names for the receiver."""
PUMPS: Final = (AUTO, "sendfile", "splice", "buffered")
"""Every name there is."""


def choose_send(wish: str | None, descriptor: int) -> SendPump:
    """The pump to send ``descriptor`` with; None and "auto" leave the choice to measurement
    (docs/decisions/001-pumps.md). UsageError for a name that does not exist or cannot work here."""
    if wish == "buffered":
        return BufferedSend()
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    works = hasattr(os, "sendfile") and regular
    if wish == "sendfile" and not works:
        lack = "the source is not a regular file" if not regular else "this system has no sendfile"
        raise UsageError(f"--pump sendfile cannot work: {lack}")
    if wish not in (None, *SEND_PUMPS):
        raise UsageError(f"no sending pump is called {wish!r}; choose one of {', '.join(SEND_PUMPS)}")
    return SendfileSend() if works else BufferedSend()


def choose_receive(wish: str | None, sink: Sink, body: Body) -> ReceivePump:
    """The pump to receive ``body`` into ``sink`` with; as :func:`choose_send`."""
    if wish == "splice":
        if not hasattr(os, "splice"):
            raise UsageError("--pump splice cannot work: this system has no splice")
        if not isinstance(sink, DescriptorSink):
            raise UsageError("--pump splice cannot work: this store offers no file descriptors")
        if not isinstance(body, RawBody):
            # A chunked body has to be parsed: forcing splice must not refuse plain HTTP clients.
            return BufferedReceive()
        return SpliceReceive()
    if wish not in (None, *RECEIVE_PUMPS):
        raise UsageError(f"no receiving pump is called {wish!r}; choose one of {', '.join(RECEIVE_PUMPS)}")
    return BufferedReceive()
