"""What every test shares: reproducible property tests, runs that soak, and the floor under the core's
branch coverage."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import coverage
import pytest
from coverage.exceptions import NoDataError
from hypothesis import HealthCheck, settings

from support.content import SEED
from support.soak import Soak

# Where this runs in the background of a script, it has been told to ignore Ctrl-C (POSIX, 2.11 of the shell),
# and every process that it starts would be, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Loaded machines make slow examples, which says nothing about the code. To look for new examples instead
# of repeating the same ones, run with --hypothesis-profile=explore.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", deadline=None, print_blob=True, max_examples=1000)
settings.load_profile("repeatable")

CORE = ("proto", "policy", "ranges", "integrity", "store")
FLOOR_KEY = pytest.StashKey[str]()
SOAK_SECONDS = 3 * 3600.0


@pytest.fixture
def soak(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Soak:
    """How much of a test that can never have run enough is to be done now."""
    made = Soak(bool(request.config.getoption("--soak")), record_property)
    sys.stdout.write(f"{SEED}={made.seed}\n")  # shown where the test fails
    return made


class Impatient:
    """Draws short waits, that double all the same: 0.0125 s, 0.025 s and so on."""

    @staticmethod
    def random() -> float:
        return 0.05


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are soon followed by the next try."""
    monkeypatch.setattr("tdx.control.client.random", Impatient)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak", action="store_true", help="do the whole of the tests that soak, and no other ones"
    )
    parser.addoption(
        "--branch-floor",
        type=float,
        metavar="PERCENT",
        help=f"with --cov, fail unless {', '.join(CORE)} together reach this coverage of branches",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak"):
        return
    soaking = [item for item in items if "soak" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in soaking])
    items[:] = soaking
    for item in soaking:
        item.add_marker(pytest.mark.timeout(SOAK_SECONDS), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    floor: float | None = session.config.getoption("--branch-floor")
    if floor is None or hasattr(session.config, "workerinput"):
        return
    root = session.config.rootpath
    found = measure_branches(root, root / ".coverage")
    reached = sum(covered for covered, _ in found.values())
    branches = sum(count for _, count in found.values())
    percent = 100 * reached / branches if branches else 0.0
    lines = [f"branches of {', '.join(CORE)}: {percent:.1f} % covered ({reached} of {branches})"]
    if percent < floor:
        lines.append(f"that is below the floor of {floor:g} %:")
        lines += [
            f"  {path}: {covered} of {count}" for path, (covered, count) in found.items() if covered < count
        ]
        if exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    session.config.stash[FLOOR_KEY] = "\n".join(lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, figures in report.user_properties:
                if key == "figures":
                    terminalreporter.write_line(f"{report.nodeid}: {figures}")
    verdict = terminalreporter.config.stash.get(FLOOR_KEY, None)
    if verdict is not None:
        terminalreporter.write_line(verdict)


def measure_branches(root: Path, data_file: Path) -> dict[str, tuple[int, int]]:
    """Branches covered and branches there are, for each file of the core."""
    measured = coverage.Coverage(data_file=data_file, config_file=root / "pyproject.toml", messages=False)
    measured.load()
    report = data_file.with_suffix(".json")
    include = [f"engine/tdx/{part}{suffix}" for part in CORE for suffix in (".py", "/*")]
    try:
        measured.json_report(outfile=str(report), include=include)
        files = json.loads(report.read_bytes())["files"]
    except NoDataError:
        return {}
    finally:
        report.unlink(missing_ok=True)
    return {
        path: (entry["summary"]["covered_branches"], entry["summary"]["num_branches"])
        for path, entry in files.items()
    }
