"""docs/security.md and docs/wire-tests.md are held to the code: every claim has a test, and the names in them
are the real ones."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tdx.policy.rules import BUILT_IN, PROVIDERS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text()
WIRE = (ROOT / "docs" / "wire-tests.md").read_text()
REFERENCE = re.compile(r"\[test: ([^\]]*)\]")
TEST = re.compile(r"tests/[\w/]+\.py(?:::\w+){1,2}")


def rows(header: str, text: str = TEXT) -> list[list[str]]:
    """The cells of every row of the tables whose first column has this heading."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells and inside and not set(cells[0]) <= set("-: "):
            found.append(cells)
        inside = bool(cells) and (inside or cells[0] == header)
    return found


@cache
def collected_from(path: Path) -> frozenset[str]:
    """What pytest would collect there: ``test_x``, ``TestY::test_z``."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else []
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for each in (*inner, node):
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test"):
                found.add(prefix + each.name)
    return frozenset(found)


def exists(reference: str) -> bool:
    path, _, name = reference.partition("::")
    return (ROOT / path).is_file() and name in collected_from(ROOT / path)


@pytest.mark.parametrize("claim", rows("claim") + rows("claim", WIRE), ids=lambda claim: claim[0][:40])
def test_a_claim_has_a_test(claim: list[str]) -> None:
    assert len(claim) == 2, f"one claim and its tests, not {claim}"
    says, held_by = claim
    assert says.endswith((".", "?"))
    assert REFERENCE.sub("", held_by).strip() == "", "nothing but tests stands beside a claim"
    assert REFERENCE.findall(held_by) != []


@pytest.mark.parametrize("text", [TEXT, WIRE], ids=["security", "wire"])
def test_every_test_that_is_named_exists(text: str) -> None:
    named = REFERENCE.findall(text)
    assert len(named) > 50
    assert text.count("[test:") == len(named)
    assert [each for each in named if TEST.fullmatch(each) is None or not exists(each)] == []


def test_a_test_that_does_not_exist_is_noticed() -> None:
    here = "tests/test_security_claims.py::"
    assert exists(here + "test_a_claim_has_a_test")
    assert not exists(here + "test_nobody_wrote")
    assert not exists(here + "exists")
    assert not exists("tests/test_nowhere.py::test_a_claim_has_a_test")
    assert not exists("tests/control/test_tls.py::test_a_caller_without_a_certificate_is_refused")


def test_every_table_is_of_a_known_kind() -> None:
    headings = re.findall(r"(?m)^\| *([^|]*?) *\|.*\n\|[-: |]+\|$", TEXT)
    assert set(headings) == {"claim", "provider", "rule"}
    assert headings.count("claim") > 10
    assert set(re.findall(r"(?m)^\| *([^|]*?) *\|.*\n\|[-: |]+\|$", WIRE)) == {"claim"}


def test_the_providers_are_the_real_ones() -> None:
    assert [cells[0] for cells in rows("provider")] == [f"`{name}`" for name in PROVIDERS]
    assert re.findall(r"(?m)^### (.*)$", TEXT) == list(PROVIDERS)


def test_the_rules_that_are_always_there_are_the_real_ones() -> None:
    assert sorted(cells[0] for cells in rows("rule")) == sorted(f"`{name}`" for name in BUILT_IN)
