"""A small tree, pushed to a receiver that judges its entries as it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.runs import Seen, push_many
from support.stub_receiver import Request, receipt, stub_receiver
from tdx.control.items import Found
from tdx.control.walk import walk
from tdx.integrity import MIN_EXTENT, Root, digest_of
from tdx.model import Links

NAMES = ["t/a", "t/b", "t/d/c", "t/d/e"]
FOLDERS = ["t", "t/d", "t/empty"]

Judge = Callable[[list[Any]], Any]
"""The verdict on an entry."""


def small_tree(top: Path) -> Path:
    (top / "d").mkdir(parents=True)
    (top / "empty").mkdir()
    for number, name in enumerate(NAMES):
        (top / name.removeprefix("t/")).write_bytes(bytes([number]) * 100 * number)
    (top / "link").symlink_to("d/c")
    return top


def found(top: Path) -> list[Found]:
    return list(walk(str(top), "t", links=Links.PRESERVE))


def root_of(path: Path) -> str:
    content = path.read_bytes()
    return str(Root.over([digest_of(content)] if content else [], len(content), MIN_EXTENT))


def judged_by(judge: Judge) -> Callable[[int, Request], Any]:
    def answering(_: int, request: Request) -> Any:
        if request.tree is not None:
            return {"entries": [judge(entry) for entry in request.tree]}
        return [receipt(entry) for entry, _ in request.entries]

    return answering


def run(top: Path, state: Path, judge: Judge, **options: Any) -> tuple[Seen, list[Request]]:
    """One run against a receiver that judges so: what was told, and what was asked."""
    with stub_receiver(judged_by(judge)) as stub:
        seen = push_many(stub.peer, found(top), state, compare=True, **options)
    return seen, stub.requests


def outcomes(seen: Seen) -> dict[str, str]:
    return {name: each.result.outcome.value for name, each in seen.endings.items() if each.result is not None}


def parts(seen: Seen) -> dict[str, str]:
    return {each.part.name: each.outcome for each in seen.parts}


def trees(requests: list[Request]) -> list[list[list[Any]]]:
    return [tree for request in requests if (tree := request.tree) is not None]


def nothing_there(entry: list[Any]) -> str:
    return "send" if entry[0] == "file" else "made"


def all_there(entry: list[Any]) -> str:
    return "ask" if entry[0] == "file" and entry[-1] is None else "same"
