"""The machine that figures come from, as a document."""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
from pathlib import Path
from typing import Final

from perf.content import GIB
from perf.model import Settings
from tdx.version import VERSION

PAGE_REPORTING: Final = Path("/sys/module/page_reporting/parameters")
ROOT: Final = Path(__file__).resolve().parent.parent


def describe(settings: Settings, programs: dict[str, str]) -> dict[str, str]:
    """What the figures may depend on, by its name; ``programs`` are the versions of the peers."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    described = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "system": _system(),
        "disk": filesystem_of(settings.disk),
        "memory filesystem": filesystem_of(settings.memory),
        "congestion control": _line(Path("/proc/sys/net/ipv4/tcp_congestion_control")) or "unknown",
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION,
        "tdx": f"{VERSION}, commit {_commit()}",
        "load before": ", ".join(f"{each:.2f}" for each in os.getloadavg()),
        **programs,
    }
    if PAGE_REPORTING.is_dir():
        values = {each.name: _line(each) for each in sorted(PAGE_REPORTING.iterdir())}
        settled = {name: value for name, value in values.items() if name in _SETTINGS and value}
        described["free page reporting"] = ", ".join(f"{name} {value}" for name, value in settled.items())
    return described


_SETTINGS: Final = ("free_bitmap_enable", "max_waiting_mib", "min_free_ms", "page_reporting_order")
"""Of free page reporting; its other parameters count."""


def filesystem_of(folder: Path) -> str:
    """The kind of the filesystem that a folder is on, by the longest mount point above it."""
    place = str(folder.resolve())
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, its, *_ = line.split()
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, its
    return kind


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _commit() -> str:
    """The commit that is checked out, and whether something was changed since."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=, with changes", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
