"""What a folder holds, as it is pushed: files, folders, symbolic links, and what is left out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tdx.control.items import Folder, Found, Item, LeftOut, Link
from tdx.errors import SourceError
from tdx.model import Links, shown

if TYPE_CHECKING:
    from tdx.control.patterns import Patterns


_NOWHERE: Final = "is a symbolic link that leads nowhere"
_NOTHING: Final = frozenset[tuple[int, int]]()


@dataclass(slots=True)
class _Visit:
    """A folder to look into. ``inside`` is its path in the pushed folder, with a slash at the end, or empty;
    ``above`` are the folders that it lies in, by device and inode, where links are followed."""

    path: str
    name: str
    inside: str
    above: frozenset[tuple[int, int]] = _NOTHING


def walk(
    folder: str, name: str, *, links: Links = Links.SKIP, patterns: Patterns | None = None
) -> Iterator[Found]:
    """``folder`` itself, which goes by ``name``, and all that is under it: after each folder its files and
    links in the order of their names, then its folders in that order. What ``patterns`` leave out is
    passed over in silence; a folder that cannot be read is an item with an error. Where ``name`` is
    empty, ``folder`` goes by no name, and is not pushed itself."""
    pending = [_Visit(folder, name, "")]
    while pending:
        visit = pending.pop()
        try:
            status = os.stat(visit.path)
            with os.scandir(visit.path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            refused = SourceError(f"{shown(visit.path)}: cannot be read: {reason}")
            yield Item(visit.path, visit.name, error=refused)
            continue
        if visit.name:
            yield Folder(visit.path, visit.name, status.st_mtime_ns, status.st_mode & 0o777)
        if links is Links.FOLLOW:
            visit.above |= {(status.st_dev, status.st_ino)}
        folders: list[_Visit] = []
        for entry in entries:
            met = _look(visit, entry, links, patterns)
            if isinstance(met, _Visit):
                folders.append(met)
            elif met is not None:
                yield met
        pending.extend(reversed(folders))


def _look(
    visit: _Visit, entry: os.DirEntry[str], links: Links, patterns: Patterns | None
) -> Item | Link | LeftOut | _Visit | None:
    """What to make of one entry of a folder; None where it is left out in silence."""
    try:
        # Of this, what stat tells is asked for; the rest is known from the folder itself.
        link = entry.is_symlink()
        follow = link and links is Links.FOLLOW
        is_folder = entry.is_dir(follow_symlinks=follow)
        if patterns is not None and patterns.leave_out(visit.inside + entry.name, folder=is_folder):
            return None
        if link and not follow:
            left_out = LeftOut(entry.path, "is a symbolic link")
            return _link(visit, entry) if links is Links.PRESERVE else left_out
        if is_folder:
            return _folder(visit, entry, link=link)
        if not entry.is_file(follow_symlinks=follow):
            lost = follow and not os.path.exists(entry.path)
            return LeftOut(entry.path, _NOWHERE if lost else "is not a regular file")
        status = entry.stat(follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return LeftOut(entry.path, _NOWHERE)
        # Pushing it will tell why not.
        return Item(entry.path, _name_in(visit, entry))
    return Item(entry.path, _name_in(visit, entry), status.st_size, status=status)


def _folder(visit: _Visit, entry: os.DirEntry[str], *, link: bool) -> _Visit | LeftOut:
    if link:
        status = entry.stat()
        if (status.st_dev, status.st_ino) in visit.above:
            return LeftOut(entry.path, "is a symbolic link to a folder that it lies in")
    return _Visit(entry.path, _name_in(visit, entry), f"{visit.inside}{entry.name}/", visit.above)


def _link(visit: _Visit, entry: os.DirEntry[str]) -> Link | LeftOut:
    target = os.readlink(entry.path)
    if target.startswith("/"):
        return LeftOut(entry.path, f"is a symbolic link to {shown(target)}, which is no relative path")
    # One that lies in no folder with a name has nothing that it could stay in.
    room = visit.inside.count("/") if visit.name else -1
    plain = _plain(os.path.dirname(entry.path), target, room)
    if plain is None:
        return LeftOut(
            entry.path, f"is a symbolic link to {shown(target)}, which leads out of the pushed folder"
        )
    status = entry.stat(follow_symlinks=False)
    return Link(entry.path, _name_in(visit, entry), status.st_mtime_ns, plain)


def _plain(folder: str, target: str, room: int) -> str | None:
    """``target`` with ``..`` at its beginning only, and no ``.`` or empty parts; None where it leads out by
    more than ``room`` folders, to the link's own folder, or on a way that the receiver could not check."""
    ups, parts = 0, list[str]()
    for part in target.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            parts.append(part)
        elif not parts:
            ups += 1
        elif _is_real_folder(os.path.join(folder, *[".."] * ups, *parts)):
            parts.pop()
        else:
            return None
    if ups > room or not (ups or parts):
        return None
    return "/".join([".."] * ups + parts)


def _is_real_folder(path: str) -> bool:
    """Whether ``..`` leads back from there, as it does not after a link."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _name_in(visit: _Visit, entry: os.DirEntry[str]) -> str:
    return f"{visit.name}/{entry.name}" if visit.name else entry.name
