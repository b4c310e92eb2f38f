"""Hostile bytes for whatever reads them: made up by hypothesis in every run, found by coverage with --soak.

The targets are in the modules beside this one. Whatever is found is printed as a Python literal: put it into
a test of the module that it is about.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.table import TARGETS
from fuzz.target import Target
from support.soak import Soak

HOUR = 3600.0
"""Of fuzzing in all."""

TASTE = ("chunked", "field_values")
"""What is fuzzed by coverage in every run, to see that it can be done."""

EXAMPLES = 40
SLOWEST = 25
"""Seconds that one input may take before it counts as a finding."""

MEMORY = 1024
"""MiB that a target may come to."""


# --- made up ----------------------------------------------------------------------------


@st.composite
def changed(draw: st.DrawFn, target: Target) -> bytes:
    """A valid input, after some accidents."""
    found = bytearray(draw(st.sampled_from(list(target.seeds()))))
    piece = st.binary(max_size=8)
    if target.tokens:
        piece |= st.sampled_from(list(target.tokens))
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(found)))
        size = draw(st.sampled_from((0, 0, 1, 2, 8, 64)))
        new = draw(st.one_of(piece, st.just(bytes(found[at : at + size] * 2))))
        found[at : at + size] = new
    return bytes(found)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_bears_what_is_made_up(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES)
    @given(st.one_of(changed(target), st.binary(max_size=256)))
    def holds(data: bytes) -> None:
        target.run(data)

    for seed in target.seeds():
        target.run(seed)
    holds()


# --- guided by coverage -------------------------------------------------------------------


@dataclass(frozen=True)
class Fuzzed:
    """What came of fuzzing one target: the inputs that it could not bear, as literals, and its output."""

    findings: list[str]
    output: str
    executions: int
    coverage: int
    features: int


def fuzzed(name: str, folder: Path, options: list[str]) -> Fuzzed:
    """Fuzz a target in a process of its own, which is gone when this returns."""
    # By way of a shell: what this process starts is told this one's peak of memory for its own.
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*shell, sys.executable, "-m", "fuzz.run", name, str(folder), *options]
    path = os.pathsep.join(each for each in sys.path if each)
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)}
    with subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output = process.communicate()[0].decode(errors="replace")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    findings = re.findall(r"^FOUND: (.*)$", output, re.MULTILINE)
    if not findings:
        # A hang or a want of memory: libFuzzer has the input.
        findings = [repr(each.read_bytes()) for each in sorted(folder.glob("*-*")) if each.is_file()]
    if process.returncode and not findings:
        findings = [f"it ended with {process.returncode}"]
    figures = re.findall(r"^#(\d+)\s.*cov: (\d+) ft: (\d+)", output, re.MULTILINE)
    executions, coverage, features = map(int, figures[-1]) if figures else (0, 0, 0)
    return Fuzzed(findings, output, executions, coverage, features)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target_name" in metafunc.fixturenames:
        metafunc.parametrize("target_name", TARGETS if metafunc.config.getoption("--soak") else TASTE)


needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine"
)


@needs_atheris
def test_a_finding_is_told_as_a_literal(tmp_path: Path) -> None:
    found = fuzzed("canary", tmp_path, ["-runs=100000", "-seed=1"])
    assert [b"mine" in ast.literal_eval(each) for each in found.findings] == [True]
    assert "AssertionError" in found.output


@needs_atheris
def test_a_target_bears_what_coverage_leads_to(target_name: str, soak: Soak, tmp_path: Path) -> None:
    seconds = soak.seconds(1, HOUR / len(TARGETS))
    found = fuzzed(
        target_name,
        tmp_path,
        [
            f"-max_total_time={seconds:.0f}",
            f"-seed={soak.seed or 1}",
            f"-timeout={SLOWEST}",
            f"-rss_limit_mb={MEMORY}",
        ],
    )
    soak.tell(
        f"{found.executions} executions in {seconds:.0f} s, coverage {found.coverage}, "
        f"features {found.features}, findings {len(found.findings)}"
    )
    assert not found.findings, f"{target_name} cannot bear {found.findings}:\n{found.output[-4000:]}"
    assert found.executions > 0, found.output
