"""Moving on what has arrived: once, when something is there, and for ever, on a virtual clock."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.inboxes import ArrivedIn, files_in
from tdx.control.getting import POLL_SECONDS, RETRY_SECONDS, Ended, GetOptions, Getting, list_inbox
from tdx.errors import BadName, ConfigError, Exists, Interrupted, SourceError, TimedOut
from tdx.model import Conflict


class Script:
    """Time that passes only where it is waited for, and things that happen meanwhile. Ends the run once
    there is nothing left to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, Callable[[], object]]] = []
        self.stopped = False

    def at(self, seconds: float, event: Callable[[], object]) -> None:
        self.events.append((seconds, event))

    def stop(self) -> None:
        self.stopped = True

    def check(self) -> None:
        if self.stopped:
            raise Interrupted("stopped")

    def wait(self, seconds: float) -> None:
        self.now += seconds
        if not self.events:
            raise TimedOut("nothing more happens")
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()

    def clock(self) -> float:
        return self.now


class Scene:
    def __init__(self, area: Path) -> None:
        self.arrived = ArrivedIn(area / "inbox", area / "state")
        self.dest = area / "dest"
        self.dest.mkdir()
        self.script = Script()
        self.ended: list[Ended] = []

    def getting(self, *names: str, **options: Any) -> Getting:
        wishes = GetOptions(self.arrived.folder, self.arrived.state, self.dest, names, **options)
        return Getting(wishes, self.script, self.ended.append, self.script.clock)

    def get(self, *names: str, **options: Any) -> list[str]:
        """Run it; the files that anything was said of."""
        self.getting(*names, **options).run()
        return [each.file.path for each in self.ended]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_everything_that_is_there_is_moved_the_oldest_first(scene: Scene) -> None:
    for name in ("z", "deep/b", "a"):
        scene.arrived.arrive(name, name.encode())
    assert scene.get() == ["z", "deep/b", "a"]
    assert files_in(scene.dest) == {"z": b"z", "deep/b": b"deep/b", "a": b"a"}
    assert [each.path for each in scene.ended] == [scene.dest / name for name in ("z", "deep/b", "a")]


@pytest.mark.parametrize(
    ("names", "moved"),
    [
        (["a"], ["a"]),
        (["deep"], ["deep/x", "deep/er/y"]),
        (["./deep/er/", "a"], ["a", "deep/er/y"]),
        (["deep", "deep/er"], ["deep/x", "deep/er/y"]),
        (["."], ["a", "deep/x", "deep/er/y", "deeper"]),
    ],
)
def test_of_names_only_those_files_and_what_is_below_those_folders(
    scene: Scene, names: list[str], moved: list[str]
) -> None:
    for name in ("a", "deep/x", "deep/er/y", "deeper"):
        scene.arrived.arrive(name, b"content")
    assert scene.get(*names) == moved


def test_a_name_that_nothing_has_is_an_error_and_the_others_are_moved(scene: Scene) -> None:
    scene.arrived.arrive("a", b"content")
    with pytest.raises(SourceError, match=r"^no, ../nor this: not in the inbox; `tdx inbox` lists"):
        scene.get("no", "a", "../nor this")
    assert [each.file.path for each in scene.ended] == ["a"]


def test_nothing_there_is_no_error(scene: Scene) -> None:
    assert scene.get() == []


def test_nothing_ever_received_is_no_error_either(scene: Scene, tmp_path: Path) -> None:
    options = GetOptions(scene.dest, tmp_path / "no state", scene.dest)
    Getting(options, scene.script, scene.ended.append).run()
    assert list_inbox(scene.dest, tmp_path / "no state") == []


def test_a_destination_that_is_not_there_is_told_at_once(scene: Scene) -> None:
    scene.dest.rmdir()
    with pytest.raises(BadName, match="is no folder to move to"):
        scene.getting(wait=True)


def test_a_failure_is_told_and_the_others_are_moved(scene: Scene) -> None:
    for name in ("a", "b"):
        scene.arrived.arrive(name, b"content")
    (scene.dest / "a").write_bytes(b"mine")
    assert scene.get(conflict=Conflict.ERROR) == ["a", "b"]
    first, second = scene.ended
    assert isinstance(first.error, Exists)
    assert (first.path, second.error) == (None, None)


def test_a_stop_leaves_what_is_left_where_it_is(scene: Scene) -> None:
    for name in ("a", "b"):
        scene.arrived.arrive(name, b"content")
    getting = scene.getting()
    checks = iter([False, False, True, True])

    def check() -> None:
        if next(checks):
            scene.script.stop()
        Script.check(scene.script)

    scene.script.check = check  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        getting.run()
    assert [each.file.path for each in scene.ended] == ["a"]
    assert scene.arrived.paths() == ["b"]


class TestWaiting:
    def test_it_waits_for_the_first_file_and_ends(self, scene: Scene) -> None:
        scene.script.at(10, lambda: scene.arrived.arrive("a", b"content"))
        assert scene.get(wait=True) == ["a"]
        assert 10 <= scene.script.now <= 10 + 2 * POLL_SECONDS

    def test_what_is_there_already_is_not_waited_for(self, scene: Scene) -> None:
        scene.arrived.arrive("a", b"content")
        assert scene.get(wait=True) == ["a"]
        assert scene.script.now == 0

    def test_of_several_names_each_is_waited_for(self, scene: Scene) -> None:
        scene.arrived.arrive("a", b"content")
        scene.script.at(5, lambda: scene.arrived.arrive("not wanted", b"content"))
        scene.script.at(10, lambda: scene.arrived.arrive("deep/b", b"content"))
        assert scene.get("a", "deep", wait=True) == ["a", "deep/b"]
        assert scene.script.now >= 10

    def test_it_waits_for_a_folder_that_was_never_received_into(self, tmp_path: Path) -> None:
        (tmp_path / "inbox").mkdir(mode=0o700)
        (tmp_path / "dest").mkdir()
        script, ended = Script(), list[Ended]()

        def receive() -> None:
            (tmp_path / "inbox").rmdir()
            ArrivedIn(tmp_path / "inbox", tmp_path / "state").arrive("a", b"content")

        script.at(3, receive)
        options = GetOptions(tmp_path / "inbox", tmp_path / "state", tmp_path / "dest", wait=True)
        Getting(options, script, ended.append, script.clock).run()
        assert [each.file.path for each in ended] == ["a"]

    def test_the_end_of_the_wait_is_told(self, scene: Scene) -> None:
        scene.script.at(5, scene.script.stop)
        with pytest.raises(Interrupted):
            scene.get(wait=True)

    def test_a_folder_that_is_removed_meanwhile_is_told(self, scene: Scene) -> None:
        scene.script.at(5, lambda: shutil.rmtree(scene.arrived.folder))
        with pytest.raises(ConfigError, match="is no folder"):
            scene.get(wait=True)


class TestLooping:
    def test_it_goes_on_moving_what_arrives(self, scene: Scene) -> None:
        scene.arrived.arrive("a", b"content")
        for second in (5, 50, 500):
            scene.script.at(second, partial(scene.arrived.arrive, str(second), b"content"))
        with pytest.raises(TimedOut):
            scene.get(loop=True)
        assert [each.file.path for each in scene.ended] == ["a", "5", "50", "500"]

    def test_what_failed_is_told_once_and_tried_again_from_time_to_time(self, scene: Scene) -> None:
        scene.arrived.arrive("a", b"content")
        (scene.dest / "a").write_bytes(b"mine")
        scene.script.at(2.5 * RETRY_SECONDS, (scene.dest / "a").unlink)
        scene.script.at(5 * RETRY_SECONDS, lambda: None)
        with pytest.raises(TimedOut):
            scene.get(loop=True, conflict=Conflict.ERROR)
        first, second = scene.ended
        assert (isinstance(first.error, Exists), second.error) == (True, None)
        assert files_in(scene.dest) == {"a": b"content"}

    def test_what_was_skipped_is_told_once(self, scene: Scene) -> None:
        scene.arrived.arrive("a", b"content")
        (scene.dest / "a").write_bytes(b"mine")
        scene.script.at(5 * RETRY_SECONDS, lambda: None)
        with pytest.raises(TimedOut):
            scene.get(loop=True, conflict=Conflict.SKIP)
        assert [(each.file.path, each.skipped) for each in scene.ended] == [("a", True)]

    def test_it_looks_at_the_files_only_when_something_has_changed(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[float] = []
        monkeypatch.setattr(Getting, "_pass", lambda _: looks.append(scene.script.now))
        for second in (100, 200):
            scene.script.at(second, lambda: scene.arrived.arrive("again", b"content"))
        with pytest.raises(TimedOut):
            scene.get(loop=True)
        assert looks == [0, 100, 200]

    def test_a_receiver_folder_that_was_made_anew_is_opened_anew(self, scene: Scene, tmp_path: Path) -> None:
        def replace() -> None:
            shutil.rmtree(scene.arrived.folder)
            ArrivedIn(scene.arrived.folder, scene.arrived.state).arrive("new", b"content")

        scene.script.at(5, replace)
        scene.script.at(10, lambda: None)
        with pytest.raises(TimedOut):
            scene.get(loop=True)
        assert [each.file.path for each in scene.ended] == ["new"]

    def test_many_files_are_settled_in_batches(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tdx.control.getting.BATCH", 2)
        for number in range(5):
            scene.arrived.arrive(f"{number}", b"content")
        assert scene.get() == [f"{number}" for number in range(5)]
