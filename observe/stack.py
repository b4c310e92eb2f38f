"""A receiver and what watches it, all of it on loopback: the real programs, configured as in ``grafana/``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import yaml

from observe.dashboards import ROOT
from support.devices import introduce
from support.observing import Job, NodeExporter, Prometheus, Pushgateway
from support.processes import Processes, reserve_port

EXAMPLE: Final = ROOT / "grafana" / "prometheus" / "prometheus.yml"
RULES: Final = ROOT / "grafana" / "prometheus" / "rules" / "tdx.yml"
PROGRAMS: Final = ("prometheus", "prometheus-node-exporter", "prometheus-pushgateway")


def missing() -> list[str]:
    """Which of the programs are not here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def jobs(**addresses: str) -> list[Job]:
    """What the example of a configuration scrapes, with these addresses for its jobs."""
    example: list[dict[str, Any]] = yaml.safe_load(EXAMPLE.read_text())["scrape_configs"]
    return [
        Job(
            given["job_name"],
            [addresses[given["job_name"]]],
            {key: value for key, value in given.items() if key not in {"job_name", "static_configs"}},
        )
        for given in example
        if given["job_name"] in addresses
    ]


class Stack:
    """In ``folder``: the receiver `nas`, which trusts whoever pushes by ``processes``, a node_exporter that
    reads ``textfiles``, a Pushgateway, and a Prometheus that scrapes the three each ``interval`` and has
    these ``rules``."""

    def __init__(
        self, processes: Processes, folder: Path, *, interval: str = "1s", rules: Path | None = RULES
    ) -> None:
        self.processes = processes
        self.textfiles = folder / "textfiles"
        self.textfiles.mkdir(parents=True)
        reserved = reserve_port()
        processes.resources.callback(reserved.close)
        self.metrics = f"127.0.0.1:{reserved.getsockname()[1]}"
        # With a program for received files, so that there are figures of those, too. The address of its
        # metrics stays the same when it is started again.
        self.receiver = processes.receiver(
            folder / "inbox",
            folder / "receiver",
            *("--metrics", self.metrics),
            config='on_receive = ["true"]\n',
        )
        introduce(folder / "receiver", Path(processes.environment["TDX_STATE_DIR"]), self.receiver.address)
        self.exporter = NodeExporter(processes, self.textfiles)
        self.gateway = Pushgateway(processes)
        self.prometheus = Prometheus(
            processes, folder / "prometheus", self.jobs(), [rules] if rules else [], interval=interval
        )
        self.prometheus.await_scraped(3)

    def jobs(self) -> list[Job]:
        return jobs(tdx=self.metrics, node=self.exporter.address, pushgateway=self.gateway.address)
