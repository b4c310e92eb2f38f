"""A real browser: a page of a listed origin uploads and resumes; pages of other origins get nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import ROOT, Processes, Receiver, wait_until
from support.proxy import Fault, always, mistreating
from support.webpages import Site, browsing, need_chromium, serving

SIZE: Final = 13 * MIB + 777
STALL: Final = 5 * MIB
"""Bytes after which a connection of the page's goes no further."""

BLIND: Final = 7
"""Requests that a page may send to another origin without a preflight, of those that it tries."""


def script(*names: str, **words: object) -> str:
    """What a page does (``tests/clients``), with these words for those in the files."""
    text = "".join((ROOT / "tests" / "clients" / name).read_text() for name in names)
    for word, value in words.items():
        text = text.replace(word, str(value))
    return text


pytestmark = pytest.mark.usefixtures("chromium")


@pytest.fixture(scope="module")
def chromium() -> None:
    need_chromium()


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source.bin", SIZE)


def listening(processes: Processes, area: Path, *origins: str) -> Receiver:
    config = f"allowed_origins = {list(origins)}".replace("'", '"')
    return processes.receiver(area / "inbox", area / "receiver-state", config=config)


def shown(processes: Processes, profile: Path, site: Site) -> Any:
    """What the site's script finds in a browser."""
    with browsing(processes, profile, site.origin):
        return site.found()


def test_a_page_of_a_listed_origin_uploads_aborts_asks_and_goes_on(
    processes: Processes, area: Path, tmp_path: Path, source: Path
) -> None:
    with serving("", source.read_bytes()) as site:
        receiver = listening(processes, area, site.origin)
        with mistreating(receiver.port, always(Fault("stall", STALL))) as proxy:
            site.script = script("upload.js", RECEIVER=f"http://127.0.0.1:{proxy.peer.port}", ENOUGH=STALL)
            found = shown(processes, tmp_path / "profile", site)
    begun = {"Upload-Offset": "0", "Upload-Complete": "?0", "Upload-Length": None}
    limit = {"Upload-Limit": found["options"]["Upload-Limit"]}
    assert limit["Upload-Limit"].startswith("max-size=")
    assert found["created"] == {"status": 201, **begun, **limit}
    assert (found["first"]["status"], found["first"]["Upload-Offset"]) == (204, "1000")
    assert (found["wrong"]["status"], found["wrong"]["Upload-Offset"]) == (409, "1000")
    assert (found["problem"]["expected-offset"], found["problem"]["provided-offset"]) == (1000, 5)
    assert found["last"] == {"status": 201, "complete": "?1"}
    assert (found["asked"]["Upload-Complete"], found["asked"]["Upload-Length"]) == ("?1", str(SIZE))
    first, second, third = found["offsets"]
    assert first == 1000
    assert STALL - MIB <= second <= STALL
    assert 2 * (STALL - MIB) <= third <= 2 * STALL
    assert receiver.published == ["from a page.bin"]
    assert receiver.partials == []
    assert sha256_of(receiver.folder / "from a page.bin") == sha256_of(source)


def test_a_page_of_a_listed_origin_puts_a_whole_file(
    processes: Processes, area: Path, tmp_path: Path, source: Path
) -> None:
    with serving("", source.read_bytes()) as site:
        receiver = listening(processes, area, site.origin)
        site.script = script("put.js", RECEIVER=receiver.url)
        found = shown(processes, tmp_path / "profile", site)
    assert (found["status"], found["receipt"]["size"]) == (201, SIZE)
    assert found["location"].startswith("/uploads/")
    assert sha256_of(receiver.folder / "whole.bin") == sha256_of(source)


@pytest.fixture
def begun(processes: Processes) -> Callable[[Receiver], str]:
    """Makes a file that is there and an upload of four bytes; where that is."""

    def begin(receiver: Receiver) -> str:
        receiver.ask("PUT", "/files/there", body=b"there")
        _, fields, _ = receiver.ask("POST", "/files/begun", {"Upload-Complete": "?0"}, b"1234")
        return fields["location"]

    return begin


def untouched(receiver: Receiver, target: str) -> bool:
    """Whether all is as it was begun, and the receiver lives on."""
    assert receiver.published == ["there"]
    assert (receiver.folder / "there").read_bytes() == b"there"
    assert len(receiver.partials) == 1
    status, fields, _ = receiver.ask("HEAD", target)
    assert (status, fields["upload-offset"], fields["upload-complete"]) == (204, "4", "?0")
    return receiver.ask("GET", "/v1/hello")[0] == 200


@pytest.mark.parametrize("listed", [True, False], ids=["another is listed", "none is listed"])
def test_a_page_of_any_other_origin_stores_changes_and_reads_nothing(
    processes: Processes, area: Path, tmp_path: Path, begun: Callable[[Receiver], str], listed: bool
) -> None:
    receiver = listening(processes, area, *(["https://files.example"] if listed else []))
    target = begun(receiver)
    tries = script("attempts.js", "blind.js", RECEIVER=receiver.url).replace("/uploads/ID", target)
    refused = [
        f'tdx_http_requests_total{{code="403",method="POST",route="{route}"}}'
        for route in ("files", "commit")
    ]

    def posts() -> float:
        counted = receiver.scrape()
        return sum(counted.get(name, 0) for name in refused)

    with serving(tries + "return found;") as site, browsing(processes, tmp_path / "profile", site.origin):
        found = site.found()
        wait_until(lambda: posts() >= BLIND + 1, "all that needs no preflight has come")
    unread = {"blind post", "quiet post", "quiet commit"}
    assert {name for name, outcome in found.items() if outcome == "opaque"} == unread
    assert {outcome for name, outcome in found.items() if name not in unread} == {"TypeError"}
    receiver.await_silence()
    assert posts() == BLIND + 1
    assert untouched(receiver, target)


def test_a_page_whose_name_was_made_to_lead_here_is_refused_everything(
    processes: Processes, area: Path, tmp_path: Path, begun: Callable[[Receiver], str]
) -> None:
    receiver = listening(processes, area)
    target = begun(receiver)
    tries = script("attempts.js", RECEIVER="").replace("/uploads/ID", target)
    with serving(tries + "return found;", behind=receiver.port) as site:
        url, rules = f"http://rebound.example:{site.port}/", "MAP rebound.example 127.0.0.1"
        with browsing(processes, tmp_path / "profile", url, f"--host-resolver-rules={rules}"):
            found = site.found()
    assert len(found) == 10
    assert set(found.values()) == {403}
    assert untouched(receiver, target)
