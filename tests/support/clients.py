"""Clients that other people wrote, from where ``make test-deps`` puts them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.processes import ROOT, Processes, Running

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tdx-test"
MODULES = Path(os.environ.get("TDX_TEST_CACHE") or _CACHE) / "clients" / "node_modules"


def need_tus() -> None:
    """Skip the test where there is no tus-js-client, or nothing that runs it."""
    for missing, what in (
        (shutil.which("node") is None, "node"),
        (not (MODULES / "tus-js-client").is_dir(), f"tus-js-client in {MODULES}"),
    ):
        if missing:
            pytest.skip(f"there is no {what}; make test-deps")


class Tus(Running):
    """One upload by tus-js-client (``tests/clients/tus.cjs``)."""

    def __init__(self, group: Processes, told: Mapping[str, object], **options: Any) -> None:
        environment = {**group.environment, "NODE_PATH": str(MODULES)}
        script = ROOT / "tests" / "clients" / "tus.cjs"
        super().__init__(group, "tus", ["node", str(script), json.dumps(told)], env=environment, **options)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it has told so far."""
        return [json.loads(line) for line in self.stdout.split("\n")[:-1]]

    def told(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    def ends(self, event: str) -> None:
        """Wait for the end, which must have come with this."""
        self.wait()
        assert self.events, self.log()
        assert self.events[-1]["event"] == event, self.log()

    @property
    def url(self) -> str:
        """Where its upload is."""
        return str(self.told("url")[-1]["url"])
