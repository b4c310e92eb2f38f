"""Web pages in a real browser: a site that serves one and hears what its script found, and Chromium."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from support.processes import PATIENCE, Processes

REPORT: Final = "/report"
CONTENT: Final = "/content"

_PAGE: Final = """<!doctype html><meta charset="utf-8"><title>a page</title><script type="module">
const tell = (found) => fetch("%s", {method: "POST", body: JSON.stringify(found)});
try { await tell({found: await (async () => {%s})()}); }
catch (error) { await tell({error: String(error) + " " + error.stack}); }
</script>"""

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-crash-reporter",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-proxy-server",
)


class Site:
    """Serves one page, whose script is the body of an async function; what that returns is heard.

    ``content`` is there for the script to fetch. Whatever else is asked for goes to ``behind``, a port, as it
    came: so a name that once led here leads there, with this page still open (DNS rebinding).
    """

    def __init__(self, script: str, content: bytes = b"", behind: int | None = None) -> None:
        self.script = script
        self.content = content
        self.behind = behind
        self._told: dict[str, Any] | None = None
        self._heard = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/":
                    self.reply(200, (_PAGE % (REPORT, site.script)).encode(), "text/html")
                elif self.path == CONTENT:
                    self.reply(200, site.content, "application/octet-stream")
                else:
                    self.pass_on()

            def do_POST(self) -> None:
                if self.path == REPORT:
                    site.hear(self.body())
                    self.reply(204, b"", "text/plain")
                else:
                    self.pass_on()

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def reply(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def pass_on(self) -> None:
                if site.behind is None:
                    self.reply(404, b"", "text/plain")
                    return
                onward = http.client.HTTPConnection("127.0.0.1", site.behind, timeout=PATIENCE)
                with contextlib.closing(onward):
                    onward.request(self.command, self.path, self.body(), dict(self.headers.items()))
                    answer = onward.getresponse()
                    self.reply(answer.status, answer.read(), answer.getheader("Content-Type", ""))

            do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = pass_on  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="site")
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hear(self, body: bytes) -> None:
        self._told = json.loads(body)
        self._heard.set()

    def found(self) -> Any:
        """What the script has returned, once it has."""
        assert self._heard.wait(PATIENCE), "the page told nothing"
        assert self._told is not None
        assert "error" not in self._told, self._told["error"]
        return self._told["found"]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def serving(script: str, content: bytes = b"", behind: int | None = None) -> Iterator[Site]:
    site = Site(script, content, behind)
    try:
        yield site
    finally:
        site.close()


def need_chromium() -> None:
    """Skip the test where there is no Chromium."""
    if shutil.which("chromium") is None:
        pytest.skip("there is no chromium; make test-deps")


@contextlib.contextmanager
def browsing(processes: Processes, profile: Path, url: str, *flags: str) -> Iterator[None]:
    """Chromium with this page, in a new profile; every process of it has ended afterwards."""
    profile.mkdir()
    command = ["chromium", *_FLAGS, f"--user-data-dir={profile}", *flags, url]
    environment = {**processes.environment, "HOME": str(profile)}
    browser = processes.run("chromium", command, env=environment, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(AssertionError):
            browser.terminate()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(browser.pid, signal.SIGKILL)
