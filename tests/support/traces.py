"""The system calls of a process and their order, as strace wrote them down."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

SHOWN: Final = 4096
"""Bytes of each string that strace writes down."""

_LINE: Final = re.compile(r"(\d+) +(.*)")
_BEGUN: Final = re.compile(r"(.*) <unfinished \.\.\.>")
_GONE_ON: Final = re.compile(r"<\.\.\. (\w+) resumed>(.*)")
_CALL: Final = re.compile(r"(\w+)\((.*)\) += (-?\d+)(.*)", re.DOTALL)
_ARGUMENT: Final = re.compile(r' *("(?:[^"\\]|\\.)*"(?:\.\.\.)?|\[[^\]]*\]|[^,]+)')
_DESCRIPTOR: Final = re.compile(r"\w+<(.*)>")


def tracer(file: Path, calls: str) -> list[str]:
    """What to put before a command; its trace is added to ``file``. The tracer is the command's grandchild
    and ends soon after it: see :func:`is_complete`."""
    what = ["-e", f"trace={calls}", "-e", "signal=none", "-s", str(SHOWN)]
    return ["strace", "-D", "-f", "-y", "--seccomp-bpf", *what, "-A", "-o", str(file), "--"]


@dataclass(frozen=True)
class Call:
    """A call that returned. ``began`` and ``ended`` are lines of the trace: one call was over before another
    began if its ``ended`` is the smaller."""

    name: str
    arguments: tuple[str, ...]
    result: int
    began: int
    ended: int

    @cached_property
    def path(self) -> str:
        """What the first argument, a descriptor, is open on."""
        return _path_of(self.arguments[0])

    @cached_property
    def target(self) -> str:
        """The path that the last pair of a directory's descriptor and a name in it means: what was made,
        removed, or renamed to."""
        at = 2 if self.name in {"renameat", "renameat2", "linkat"} else 0
        return self._joined(at)

    @cached_property
    def source(self) -> str:
        """The same for what was renamed."""
        return self._joined(0)

    @cached_property
    def data(self) -> bytes:
        """The bytes of the second argument, or the first :data:`SHOWN` of them."""
        return _bytes_of(self.arguments[1])

    @cached_property
    def offset(self) -> int:
        """Of a pwrite."""
        return int(self.arguments[3])

    def _joined(self, at: int) -> str:
        name = _bytes_of(self.arguments[at + 1]).decode()
        return str(Path(_path_of(self.arguments[at]), name))


def is_complete(file: Path, pid: int) -> bool:
    """Whether everything is in the trace that this process did."""
    return re.search(rf"(?m)^{pid} +\+\+\+ exited with ", file.read_text("utf-8")) is not None


def read_trace(file: Path) -> list[Call]:
    """The calls that succeeded, in the order in which they ended."""
    return list(_read(file.read_text("utf-8")))


def _read(text: str) -> Iterator[Call]:
    running: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(text.splitlines()):
        found = _LINE.fullmatch(line)
        assert found, line
        thread, rest = found.groups()
        if begun := _BEGUN.fullmatch(rest):
            running[thread] = number, begun[1]
            continue
        began = number
        if gone_on := _GONE_ON.fullmatch(rest):
            began, first = running.pop(thread)
            rest = first + gone_on[2]
        call = _CALL.fullmatch(rest)
        if call is None or int(call[3]) < 0:  # an exit, a signal, a failure
            continue
        arguments = tuple(_ARGUMENT.findall(call[2]))
        yield Call(call[1], arguments, int(call[3]), began, number)


def _path_of(descriptor: str) -> str:
    found = _DESCRIPTOR.fullmatch(descriptor)
    return found[1] if found else descriptor


def _bytes_of(string: str) -> bytes:
    value = ast.literal_eval("b" + string.removesuffix("..."))
    assert isinstance(value, bytes)
    return value
