"""headscale: the control server of a tailnet of the tests' own, with a relay (DERP)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from support.processes import PATIENCE, Processes, wait_until

SUFFIX: Final = "tailnet.test"
"""What ends the name of every node."""

RELAY: Final = "test"
"""What status calls the relay: DERP's region code."""

_PORT: Final = 8080


class Headscale:
    """A server in plain HTTP at ``host``, which listens. ``prefix`` comes before its commands."""

    def __init__(
        self,
        processes: Processes,
        program: str,
        prefix: list[str],
        folder: Path,
        host: str,
        policy: Mapping[str, object],
    ) -> None:
        """``folder`` is to be made, and holds all that it keeps; ``policy`` is as headscale reads it."""
        folder.mkdir()
        self.url = f"http://{host}:{_PORT}"
        config, control = folder / "config.yaml", folder / "socket"
        config.write_text(json.dumps(_settings(folder, host, control)))  # JSON is YAML
        (folder / "policy.json").write_text(json.dumps(policy))
        self._command = [*prefix, program, "--config", str(config)]
        self._environment = {**processes.environment, "HOME": str(folder)}
        self._server = processes.run("headscale", [*self._command, "serve"], env=self._environment)
        wait_until(lambda: control.exists() or not self._server.running, "headscale listens")
        assert self._server.running, self._server.log()

    def key_of_user(self, email: str) -> str:
        """A key with which any number of nodes may join for a user, who is made."""
        made = self._tell("users", "create", email.partition("@")[0], "--email", email)
        return str(self._tell("preauthkeys", "create", "--user", str(made["id"]), "--reusable")["key"])

    def key_of_tag(self, tag: str) -> str:
        """A key with which any number of nodes may join that have this tag, and so no user."""
        return str(self._tell("preauthkeys", "create", "--tags", tag, "--reusable")["key"])

    def _tell(self, *arguments: str) -> Any:
        """What it answers to a command."""
        command = [*self._command, "--output", "json", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=self._environment
        )
        assert done.returncode == 0, f"{done.stderr}\n{self._server.log()}"
        return json.loads(done.stdout)


def _settings(folder: Path, host: str, control: Path) -> dict[str, object]:
    relay = {
        "enabled": True,
        "region_id": 999,
        "region_code": RELAY,
        "region_name": "Test",
        "verify_clients": True,
        "stun_listen_addr": f"{host}:3478",
        "private_key_path": str(folder / "derp.key"),
        "automatically_add_embedded_derp_region": True,
        "ipv4": host,
    }
    return {
        "server_url": f"http://{host}:{_PORT}",
        "listen_addr": f"{host}:{_PORT}",
        "metrics_listen_addr": "",
        "grpc_listen_addr": "127.0.0.1:50443",
        "unix_socket": str(control),
        "unix_socket_permission": "0700",
        "noise": {"private_key_path": str(folder / "noise.key")},
        "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48"},
        "derp": {"server": relay, "urls": [], "paths": [], "auto_update_enabled": False},
        "disable_check_updates": True,
        "database": {"type": "sqlite", "sqlite": {"path": str(folder / "db.sqlite")}},
        "log": {"level": "info", "format": "text"},
        "policy": {"mode": "file", "path": str(folder / "policy.json")},
        "dns": {
            "magic_dns": True,
            "base_domain": SUFFIX,
            "override_local_dns": False,
            "nameservers": {"global": []},
        },
        "logtail": {"enabled": False},
    }
