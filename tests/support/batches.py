"""Batches of tests: files that say what to push, and what runs of them told."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from support.content import MIB


def write_batch(file: Path, items: Iterable[Mapping[str, Any]], top: str = "", **defaults: object) -> Path:
    """A batch of these items, called ``a``, ``b`` and so on unless they say otherwise; ``top`` comes first.
    What is a string, a number, a truth or a list of strings in Python is the same in TOML."""
    lines = [top]
    if defaults:
        lines += ["[defaults]", *_lines(defaults)]
    for number, item in enumerate(items):
        lines += ["[[item]]", *_lines({"name": chr(ord("a") + number), **item})]
    file.write_text("\n".join(lines) + "\n")
    return file


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]


def events_in(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], tuple[str, int]]:
    """Of a run with --json: what became of each item at each peer."""
    summary = events_in(done.stdout)[-1]
    assert summary["event"] == "summary"
    assert summary["exit_code"] == done.returncode
    return {(part["item"], part["peer"]): (part["outcome"], part["exit_code"]) for part in summary["items"]}


def make_source(top: Path) -> Path:
    """A folder with a file that goes by itself, a small one, and an empty one deeper down."""
    (top / "sub").mkdir(parents=True)
    (top / "big").write_bytes(os.urandom(5 * MIB))
    (top / "small").write_bytes(os.urandom(1000))
    (top / "sub" / "deep").write_bytes(b"")
    return top
