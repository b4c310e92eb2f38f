"""curl, uploading to nginx's own WebDAV module."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from perf.contestants.programs import HOST, Serving, installed, listening, reserved, says
from perf.model import Missing, Running

_CONFIGURATION: Final = """\
{user}
daemon off;
worker_processes auto;
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    client_max_body_size 0;
    client_body_buffer_size {buffer};
    client_body_temp_path {incoming};
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen {host}:{port} backlog=512;
        root {target};
        location / {{
            dav_methods PUT;
            create_full_put_path on;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """``curl -T`` to nginx, which writes to a file beside the target and renames it.

    Tuned: the temporary file is on the target's filesystem, so that nginx renames instead of copying; no
    access log; curl does not wait for ``100 Continue``. The body buffer is ``buffer`` large: 16 KiB is
    nginx's default, 1 MiB is best of those up to 4 MiB, and 1.6 times as fast. curl reads its upload in
    blocks of 64 KiB, and has no option for more. There is no TLS, no hash and no fsync.
    """

    buffer: str = "16k"
    name: str = "curl → nginx"
    does: str = "no encryption, no hash, no fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        program, curl = installed("nginx", "nginx-light"), installed("curl", "curl")
        incoming = target / ".nginx"
        user = ""
        if os.geteuid() == 0:
            user = f"user {pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name};"
        with reserved() as port:
            configuration = home / "nginx.conf"
            configuration.write_text(
                _CONFIGURATION.format(
                    user=user,
                    home=home,
                    buffer=self.buffer,
                    incoming=incoming,
                    host=HOST,
                    port=port,
                    target=target,
                )
            )
            own = [program, "-e", str(home / "error.log"), "-p", str(home), "-c", str(configuration)]

            def put(source: Path) -> Sequence[str]:
                if source.is_dir():
                    raise Missing("curl uploads files, not folders")
                url = f"http://{HOST}:{port}/{quote(source.name)}"
                return [curl, "-q", "-sS", "-f", "-H", "Expect:", "-T", str(source), url]

            try:
                with listening(own, home / "error.log", port) as process:
                    yield Serving((process.pid,), target, put)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)

    def version(self) -> str:
        curl = says(installed("curl", "curl"), "--version").split(" (")[0]
        return f"{says(installed('nginx', 'nginx-light'), '-v').rpartition(' ')[2]}, {curl}"
