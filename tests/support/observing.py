"""Prometheus and those that it scrapes: the real programs, on free ports, with nothing of the machine's."""

from __future__ import annotations

import http.client
import json
import shutil
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from support.processes import Processes, Running, reserve_port, wait_until

SECONDS: Final = 60
"""How long one of them may take to start."""


def program(name: str) -> str:
    """The path of a program; the test is skipped where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name}; make test-deps")
    return path


def ask(host: str, target: str) -> tuple[int, bytes]:
    """GET ``target`` of ``host``, which is ``HOST:PORT``: status and body; 0 where nobody answers."""
    connection = http.client.HTTPConnection(host, timeout=SECONDS)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


class _Program:
    """A server of HTTP that is ready once ``ready`` answers with 200."""

    def __init__(self, processes: Processes, command: Sequence[str], ready: str) -> None:
        self._processes = processes
        self._reserved = reserve_port()
        processes.resources.callback(self._reserved.close)
        self.address = f"127.0.0.1:{self._reserved.getsockname()[1]}"
        self._command = [
            program(command[0]),
            *command[1:],
            f"--web.listen-address={self.address}",
            "--log.level=warn",
        ]
        self._ready = ready
        self._name = command[0]
        self.process = self._start()

    def _start(self) -> Running:
        process = self._processes.run(self._name, self._command)

        def answers() -> bool:
            assert process.running, process.log()
            return ask(self.address, self._ready)[0] == 200

        wait_until(answers, f"{self._name} is ready", SECONDS)
        return process

    def restart(self) -> None:
        """End it, and start it again on its port, with what it has on disk."""
        self.process.terminate()
        self.process = self._start()


class NodeExporter(_Program):
    """node_exporter with nothing but its textfile collector, which reads ``*.prom`` in ``folder``."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        only = ["--collector.disable-defaults", "--collector.textfile", "--web.disable-exporter-metrics"]
        super().__init__(
            processes, ["prometheus-node-exporter", *only, f"--collector.textfile.directory={folder}"], "/"
        )

    def page(self) -> str:
        """What it serves."""
        status, body = ask(self.address, "/metrics")
        assert status == 200, body
        return body.decode()


class Pushgateway(_Program):
    """A Pushgateway that keeps what it is told in memory only."""

    def __init__(self, processes: Processes) -> None:
        super().__init__(processes, ["prometheus-pushgateway", "--persistence.file="], "/-/ready")

    def page(self) -> str:
        """What it serves."""
        status, body = ask(self.address, "/metrics")
        assert status == 200, body
        return body.decode()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What has been pushed: each group has its ``labels``, and by name its metrics."""
        status, body = ask(self.address, "/api/v1/metrics")
        assert status == 200, body
        found: list[dict[str, Any]] = json.loads(body)["data"]
        return found


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be scraped, and further lines of its configuration (YAML is a superset of JSON)."""

    name: str
    targets: Sequence[str]
    also: Mapping[str, Any] | None = None


class Prometheus(_Program):
    """A Prometheus server with a data folder of its own. ``rules`` are files of rules."""

    def __init__(
        self,
        processes: Processes,
        folder: Path,
        jobs: Sequence[Job],
        rules: Sequence[Path] = (),
        *,
        interval: str = "250ms",
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._rules = [str(path) for path in rules]
        self._interval = interval
        self._write(jobs)
        super().__init__(
            processes,
            [
                "prometheus",
                f"--config.file={self.config}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.enable-lifecycle",
            ],
            "/-/ready",
        )

    @property
    def config(self) -> Path:
        return self.folder / "prometheus.yml"

    def _write(self, jobs: Sequence[Job]) -> None:
        scraped = [
            {"job_name": job.name, "static_configs": [{"targets": list(job.targets)}], **(job.also or {})}
            for job in jobs
        ]
        timing = {
            "scrape_interval": self._interval,
            "scrape_timeout": self._interval,
            "evaluation_interval": self._interval,
        }
        self.config.write_text(
            json.dumps({"global": timing, "rule_files": self._rules, "scrape_configs": scraped}, indent=1)
        )

    def scrape(self, jobs: Sequence[Job]) -> None:
        """Scrape these from now on."""
        self._write(jobs)
        connection = http.client.HTTPConnection(self.address, timeout=SECONDS)
        try:
            connection.request("POST", "/-/reload")
            answer = connection.getresponse()
            assert answer.status == 200, answer.read().decode()
        finally:
            connection.close()

    def api(self, path: str, **parameters: str) -> Any:
        """The ``data`` of an answer of the HTTP API, of which ``path`` is what follows ``/api/v1/``.
        AssertionError with what Prometheus says where it refuses."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        status, body = ask(self.address, f"/api/v1/{path}{query}")
        assert status == 200, f"{path} {parameters}: {status} {body.decode()}"
        return json.loads(body)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """An instant query: every sample with its labels."""
        data = self.api("query", query=expression)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def value(self, expression: str) -> float:
        """The only sample of an instant query."""
        ((_, value),) = self.query(expression)
        return value

    @property
    def targets(self) -> list[dict[str, Any]]:
        """The targets that are scraped; ``health`` is up, down or unknown, ``lastError`` says why."""
        found: list[dict[str, Any]] = self.api("targets")["activeTargets"]
        return found

    def await_scraped(self, count: int) -> None:
        """Wait until so many targets, which are all, are up."""

        def up() -> bool:
            healths = [each["health"] for each in self.targets]
            return len(healths) == count and set(healths) == {"up"}

        wait_until(up, f"{count} targets are up", SECONDS)

    @property
    def alerts(self) -> dict[str, str]:
        """Every alert that is pending or firing, and which of them."""
        states: dict[str, str] = {}
        for each in self.api("alerts")["alerts"]:
            name = each["labels"]["alertname"]
            if states.get(name) != "firing":
                states[name] = each["state"]
        return states

    def await_alert(self, name: str, state: str = "firing") -> None:
        """Wait until the alert is in this state."""
        wait_until(lambda: self.alerts.get(name) == state, f"{name} is {state}", SECONDS)


def promtool(processes: Processes, *arguments: str, stdin: Path | None = None) -> str:
    """What ``promtool`` says, which must find nothing wrong."""
    command = [program("promtool"), *arguments]
    if stdin is None:
        process = processes.run("promtool", command)
    else:
        with stdin.open("rb") as file:
            process = processes.run("promtool", command, stdin=file)
    assert process.wait() == 0, process.log()
    return process.stdout + process.stderr
