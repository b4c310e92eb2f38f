"""``python confined.py UNIT COMMAND...``: the command under the filters of system calls that a unit asks for
(SystemCallFilter, RestrictAddressFamilies, MemoryDenyWriteExecute, RestrictNamespaces, RestrictSUIDSGID).
``python confined.py --write=FOLDER COMMAND...``, as root: with nothing writable but FOLDER
(ProtectSystem=strict).

Stricter than systemd: what is not allowed kills, so that nothing goes wrong unseen.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from pathlib import Path
from typing import Final

from support.units import Unit, allowed_calls, read_unit

KILL: Final = 0x80000000
ALLOW: Final = 0x7FFF0000
ERRNO: Final = 0x00050000
EQUAL: Final = 4
MASKED_EQUAL: Final = 7

_WRITE_EXEC: Final = 2 | 4
_NEW_NAMESPACES: Final = 0x7E020000 | 0x80
_SET_IDS: Final = 0o6000

CLONE_NEWNS: Final = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR: Final = 442
READ_ONLY: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38


class _Compared(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


Comparison = tuple[int, int, int, int]


def masked(argument: int, mask: int, value: int = 0) -> Comparison:
    return argument, MASKED_EQUAL, mask, value


class Filter:
    """libseccomp(3), as far as it is needed."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2")
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(KILL))

    def allow(self, call: str, *alternatives: Comparison, action: int = ALLOW) -> None:
        """Let a call through; where there are alternatives, if one of them holds."""
        number = self._lib.seccomp_syscall_resolve_name(call.encode())
        if number < 0:  # not of this machine
            return
        for each in alternatives or (None,):
            compared = (_Compared * 1)(*((_Compared(*each),) if each else ()))
            result = self._lib.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(action), number, 1 if each else 0, compared
            )
            assert result in (0, -errno.EEXIST), (call, result)

    def load(self) -> None:
        assert self._lib.seccomp_load(self._context) == 0


def filter_of(unit: Unit) -> Filter:
    calls = set(allowed_calls(unit))
    made = Filter()
    special: dict[str, tuple[Comparison, ...]] = {}
    if families := unit.words("RestrictAddressFamilies"):
        special["socket"] = tuple((0, EQUAL, int(getattr(socket, family)), 0) for family in families)
    if unit["MemoryDenyWriteExecute"] == "yes":
        special["mmap"] = tuple(masked(2, _WRITE_EXEC, value) for value in (0, 2, 4))
        special["mprotect"] = special["pkey_mprotect"] = (masked(2, 4),)
    if unit["RestrictNamespaces"] == "yes":
        special["clone"] = (masked(0, _NEW_NAMESPACES),)
        calls -= {"unshare", "setns", "clone3"}
        made.allow("clone3", action=ERRNO | errno.ENOSYS)  # its flags cannot be looked at
    if unit["RestrictSUIDSGID"] == "yes":
        for call, argument in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mkdirat", 2)):
            special[call] = (masked(argument, _SET_IDS),)
        special["openat"] = (masked(2, os.O_CREAT), masked(3, _SET_IDS))
        special["open"] = (masked(1, os.O_CREAT), masked(2, _SET_IDS))
    for call in sorted(calls):
        made.allow(call, *special.get(call, ()))
    return made


def keep_read_only(writable: Path) -> None:
    """Everything but this folder."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

    def attributes(path: Path, **wish: int) -> None:
        wanted = _Attributes(**wish)
        result = libc.syscall(
            SYS_MOUNT_SETATTR,
            AT_FDCWD,
            os.fsencode(path),
            AT_RECURSIVE,
            ctypes.byref(wanted),
            ctypes.sizeof(wanted),
        )
        check(result, f"mount_setattr of {path}")

    check(libc.unshare(CLONE_NEWNS), "unshare")
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount")
    check(libc.mount(os.fsencode(writable), os.fsencode(writable), None, MS_BIND, None), "bind")
    attributes(Path("/"), set=READ_ONLY)
    attributes(writable, clear=READ_ONLY)


def main() -> None:
    first, *command = sys.argv[1:]
    if first.startswith("--write="):
        keep_read_only(Path(first.removeprefix("--write=")))
    else:
        made = filter_of(read_unit(Path(first)))
        assert ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        made.load()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
