"""docs/schema is held to the commands, and to what earlier versions have promised."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from support.batches import make_source, write_batch
from support.commands import PATIENCE, RunningReceiver, Tdx, events_of, parsed
from support.devices import trust
from support.schemas import FOLDER, accepts, check_schema, conform, explained, kinds, schemas
from tdx.errors import leaves
from tdx.integrity import MIB
from tdx_cli.app import COMMANDS
from tdx_cli.app import tdx as group

STEP = "event step state text advice exit_code"
WAITED = "stages bottleneck retries"
RESULT = f"event name size sent_bytes resumed_bytes reused_bytes seconds root path error {WAITED}"
LINE = "time level logger message"

OF = "item peer"
COUNTS = "files done identical skipped failed folders links refused sent_bytes resumed_bytes reused_bytes"
OF_FILE = f"{RESULT} {OF}"
MOVED = "event name path size root error"

VERSION_1 = {
    "batch": {
        "waiting": "event batch seconds",
        "started": f"event name size {OF}",
        "progress": "event name size phase sent_bytes resumed_bytes reused_bytes checked_bytes retries"
        f" seconds bottleneck {OF}",
        "arrived": OF_FILE,
        "skipped": OF_FILE,
        "failed": OF_FILE,
        "part": f"event name outcome path error {OF}",
        "summary": f"event batch {COUNTS} seconds items exit_code {WAITED}",
        "planned": f"event name size source error {OF}",
        "plan": "event batch items exit_code",
    },
    "doctor": {
        **dict.fromkeys(
            ("name", "reach", "identity", "path", "permission", "space", "clock", "throughput"), STEP
        ),
        "failed": f"{STEP} code",
        "summary": "event peer failed exit_code",
    },
    "gc": {
        "removed": "event upload name bytes idle_seconds",
        "summary": "event uploads bytes digest_logs roots",
    },
    "get": dict.fromkeys(("moved", "skipped", "failed"), MOVED),
    "id": {"id": "event key certificate certificate_file"},
    "inbox": {"arrived": "event path size published_at owner verified root"},
    "log": {
        "other": LINE,
        "created": f"{LINE} event owner upload name size",
        "resumed": f"{LINE} event owner upload name size resumed_bytes",
        "kept": f"{LINE} event owner upload name size received_bytes held_bytes",
        "settled": f"{LINE} event name size path outcome",
        "given_up": f"{LINE} event owner outcome",
        "expired": f"{LINE} event owner upload name size held_bytes",
        "bundle": f"{LINE} event owner files published identical skipped failed errors received_bytes seconds"
        " stages sender_stages bottleneck",
        "refused": f"{LINE} event address request error reason",
        "held_back": f"{LINE} event count",
    },
    "pair": {
        "waiting": "event addresses code expires_seconds",
        "paired": "event name key addresses added",
    },
    "peers": {
        "peer": "event name who user node tags owner own sources addresses state reason path",
    },
    "policy": {"policy": "event identity allowed rule rules grant"},
    "push": {
        "started": "event name size peer",
        "progress": "event name size phase sent_bytes resumed_bytes reused_bytes checked_bytes retries"
        " seconds bottleneck",
        "arrived": RESULT,
        "skipped": RESULT,
        "failed": RESULT,
        "part": "event name outcome path error",
        "summary": f"event {COUNTS} seconds exit_code {WAITED}",
    },
    "status": {
        "status": "event version pid folder state started seconds listening metrics connections free_bytes"
        " staged_bytes received_bytes disk_waiting_seconds transfers bundles waiting",
    },
    "trust": {"device": "event name key addresses added"},
    "whois": {"identity": "event provider user node tags capabilities owner own because"},
}
"""The keys that each line of version 1 has. A later version may add lines to this table and words to its end;
to change or to take away one would break whoever reads them."""

RESULTS = {"arrived": {"done", "identical"}, "skipped": {"skipped"}, "failed": {"failed"}}


def objects(part: Any) -> Iterator[dict[str, Any]]:
    """Every description of an object in a schema."""
    if isinstance(part, dict):
        if part.get("type") == "object":
            yield part
        for each in part.values():
            yield from objects(each)
    elif isinstance(part, list):
        for each in part:
            yield from objects(each)


def kinds_of(name: str, lines: list[dict[str, Any]]) -> set[str]:
    """The kinds of lines there are, all of which are as the schema has them."""
    conform(name, lines)
    found: set[str] = set()
    for line in lines:
        for kind, schema in kinds(schemas()[name]).items():
            event, step = (schema["properties"].get(each, {}) for each in ("event", "step"))
            failed = (line.get("state") == "failed") == (kind == "failed") or name != "doctor"
            steps = [step.get("const"), *step.get("enum", [])]
            if line["event"] in [event.get("const"), *event.get("enum", [])] and line.get("step") in steps:
                found |= {kind} if failed else set()
    return found


# --- the files ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(schemas()))
class TestEverySchema:
    def test_is_a_json_schema_whose_id_is_no_address(self, name: str) -> None:
        schema = schemas()[name]
        check_schema(schema)
        assert schema["$id"] == f"urn:tdx:schema:{name}:1"

    def test_refuses_what_it_does_not_know(self, name: str) -> None:
        assert all(accepted["additionalProperties"] is False for accepted in kinds(schemas()[name]).values())
        open_ones = [each for each in objects(schemas()[name]) if "additionalProperties" not in each]
        # What a receiver says of itself is its version's to say.
        assert all("a later one may say more" in each["description"] for each in open_ones)

    def test_keeps_what_version_1_has_promised(self, name: str) -> None:
        required = {kind: set(schema["required"]) for kind, schema in kinds(schemas()[name]).items()}
        for kind, keys in VERSION_1.get(name, {}).items():
            assert set(keys.split()) <= required[kind]

    def test_requires_only_what_it_describes(self, name: str) -> None:
        for each in objects(schemas()[name]):
            assert set(each.get("required", ())) <= set(each.get("properties", ()))


def test_every_schema_is_promised() -> None:
    promised = {name: set(lines) for name, lines in VERSION_1.items()}
    assert promised == {name: set(kinds(schema)) for name, schema in schemas().items()}


def options_of(command: click.Command) -> set[str]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    own = {flag for option in command.params for flag in option.opts}
    return own.union(*map(options_of, inner))


def test_every_command_that_prints_json_has_a_schema() -> None:
    printing: set[str] = set()
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if "--json" in options_of(command):
            printing.add(name)
    assert printing == set(schemas()) - {"log"}


def test_every_exit_code_of_an_error_is_one_of_the_schema() -> None:
    known = set(schemas()["push"]["$defs"]["exit_code"]["enum"])
    assert {error.exit_code for error in leaves()} | {0, 70} <= known


def test_every_code_of_an_error_fits_the_schema() -> None:
    pattern = schemas()["push"]["$defs"]["error"]["properties"]["code"]["pattern"]
    assert [error.code for error in leaves() if not re.search(pattern, error.code)] == []


def test_the_page_names_every_file() -> None:
    page = (FOLDER.parent / "cli.md").read_text() + (FOLDER.parent / "logs.md").read_text()
    assert [name for name in schemas() if f"(schema/{name}.json)" not in page] == []


DONE = {
    "event": "done",
    "name": "f",
    "size": 1,
    "sent_bytes": 1,
    "resumed_bytes": 0,
    "reused_bytes": 0,
    "seconds": 0.1,
    "root": "xxh3-128:4194304:" + "0" * 32,
    "path": "f",
    "error": None,
    "stages": {"sender": {"read": 0.1}, "receiver": {}},
    "bottleneck": None,
    "retries": 0,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"new": 1},
        {"event": "finished"},
        {"size": "1"},
        {"size": None},
        {"sent_bytes": -1},
        {"root": None},
        {"root": "sha-256:abc"},
        {"error": {"code": "busy", "message": "", "exit_code": 75}},
        {"event": "failed", "root": None, "path": None, "error": {"code": "busy", "message": ""}},
        {"event": "failed", "root": None, "path": None, "error": None},
        {"stages": {"sender": {}}},
        {"stages": {"sender": {"rest": 1.0}, "receiver": {}}},
        {"bottleneck": "the moon"},
    ],
    ids=" ".join,
)
def test_what_is_not_promised_is_refused_and_the_reason_is_named(wrong: dict[str, object]) -> None:
    assert accepts("push", DONE)
    assert not accepts("push", DONE | wrong)
    assert "docs/schema/push.json does not have" in explained("push", DONE | wrong)


@pytest.mark.parametrize("key", DONE)
def test_a_line_that_lacks_a_key_is_refused(key: str) -> None:
    assert not accepts("push", {name: value for name, value in DONE.items() if name != key})


# --- what the commands print ---------------------------------------------------------


def test_every_line_of_a_push_is_as_the_schema_has_it(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    """In all endings: here, every one that there is must come."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(os.urandom(100))
    (receiver.folder / "taken").write_bytes(b"another")
    taken = ("--name", "taken", "--json")
    large = tmp_path / "large"
    large.write_bytes(os.urandom(9 * MIB))
    runs = [
        tdx("push", large, receiver.address, "--json", "--limit-rate", "20M"),
        tdx("push", large, receiver.address, "--json"),
        tdx("push", folder / "a", receiver.address, *taken, "--conflict", "skip"),
        tdx("push", folder / "a", receiver.address, *taken, "--conflict", "error"),
        tdx("push", large, receiver.address, *taken, "--conflict", "skip"),
        tdx("push", tmp_path / "missing", receiver.address, "--json"),
        tdx("push", "-", receiver.address, "--name", "piped", "--json", input="from a pipe"),
        tdx("push", "-r", folder, receiver.address, "--json"),
        tdx("push", "-r", folder, receiver.address, "--json"),
        tdx("push", folder / "a", "127.0.0.1:1", "--json"),
    ]
    assert [run.returncode for run in runs] == [0, 0, 0, 73, 0, 66, 0, 0, 0, 69]
    lines = [line for run in runs for line in parsed(run.stdout)]
    assert kinds_of("push", lines) == set(VERSION_1["push"])
    assert set().union(*RESULTS.values()) <= {line["event"] for line in lines}


def test_every_line_of_a_push_that_is_stopped_is_as_the_schema_has_it(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(9 * MIB))
    arguments = ("push", large, receiver.address, "--json", "--limit-rate", "4M")
    process = tdx.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        events = events_of(process)
        lines = [next(events), next(events)]
        process.terminate()
        lines += events
        assert process.wait(PATIENCE) == 75
    assert kinds_of("push", lines) == {"started", "progress", "failed"}


def test_every_line_of_a_batch_is_as_the_schema_has_it(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    make_source(tmp_path / "source")
    (receiver.folder / "taken").write_bytes(b"another")
    taken: dict[str, Any] = {"sources": ["source/small"], "as": "taken", "conflict": "skip"}
    items: list[dict[str, Any]] = [
        {"sources": ["source"], "recursive": True, "limit_rate": "4M"},
        {"sources": ["missing"]},
        taken,
        {**taken, "conflict": "error"},
        {"sources": ["source/small"], "peer": "no..such..peer"},
    ]
    file = write_batch(
        tmp_path / "b.toml", items, "jitter = 0.1", peer=receiver.address, conflict="overwrite"
    )
    run, again, plan = (tdx("batch", file, "--json", *more) for more in ((), ("--now",), ("--dry-run",)))
    assert [done.returncode for done in (run, again, plan)] == [73, 73, 66]
    lines = [line for done in (run, again, plan) for line in parsed(done.stdout)]
    assert kinds_of("batch", lines) == set(VERSION_1["batch"])


def test_every_line_about_what_has_arrived_is_as_the_schema_has_it(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(os.urandom(100))
    assert tdx("push", tmp_path / "a", tmp_path / "b", receiver.address).returncode == 0
    places = ("--dir", receiver.folder, "--json")
    there = tmp_path / "there"
    there.mkdir()
    (there / "a").write_bytes(b"another")
    listed = tdx("inbox", *places)
    get = ("get", "--to", there, *places, "--conflict")
    skipped, refused, moved = tdx(*get, "skip"), tdx(*get, "error"), tdx(*get, "rename")
    assert [done.returncode for done in (listed, skipped, refused, moved)] == [0, 0, 73, 0]
    assert kinds_of("inbox", parsed(listed.stdout)) == {"arrived"}
    lines = [line for done in (skipped, refused, moved) for line in parsed(done.stdout)]
    assert kinds_of("get", lines) == set(VERSION_1["get"])


def test_every_line_about_devices_is_as_the_schema_has_it(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    pem = tdx("id", "--certificate").stdout
    there = tmp_path / "there"
    given = ("--state", there, "--json")
    added = tdx("trust", "add", "nas", "-", "--address", receiver.address, *given, input=pem)
    said = {
        "id": tdx("id", "--json"),
        "peers": tdx("peers", *given),
        "whois": tdx("whois", receiver.address, "--json"),
    }
    listed, removed = tdx("trust", "list", *given), tdx("trust", "remove", "nas", *given)
    for name, done in said.items():
        assert done.returncode == 0, done.stderr
        assert kinds_of(name, parsed(done.stdout)) == set(VERSION_1[name])
    told = [line for done in (added, listed, removed) for line in parsed(done.stdout)]
    assert [line["event"] for line in told] == ["added", "trusted", "removed"]
    conform("trust", told)
    trust(there, "gone", tmp_path / "gone", "127.0.0.1:1")
    (gone,) = parsed(tdx("peers", *given).stdout)
    assert gone["state"] == "no answer"


def test_every_line_of_a_pairing_is_as_the_schema_has_it(tdx: Tdx, tmp_path: Path) -> None:
    other = Tdx(tmp_path / "other")
    flags = ("--listen", "127.0.0.1:0", "--name", "desk", "--json")
    waits = other.start("pair", *flags, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with waits:
        events = events_of(waits)
        waiting = next(events)
        done = tdx("pair", waiting["addresses"][0], waiting["code"], "--name", "laptop", "--json")
        lines = [waiting, *events]
        assert (done.returncode, waits.wait(PATIENCE)) == (0, 0)
    assert kinds_of("pair", [*lines, *parsed(done.stdout)]) == set(VERSION_1["pair"])


def test_every_answer_about_the_policy_is_as_the_schema_has_it(tdx: Tdx) -> None:
    allowed = tdx("policy", "check", f"local:{os.getuid()}", "--json")
    refused = tdx("policy", "check", "tailscale:n1", "--json")
    assert (allowed.returncode, refused.returncode) == (0, 77)
    (yes,), (no,) = parsed(allowed.stdout), parsed(refused.stdout)
    assert (yes["allowed"], no["grant"]) == (True, None)
    assert kinds_of("policy", [yes, no]) == set(VERSION_1["policy"])


def test_every_line_of_the_doctor_is_as_the_schema_has_it(tdx: Tdx, receiver: RunningReceiver) -> None:
    well = parsed(tdx("doctor", receiver.address, "--size", "1M", "--json").stdout)
    ill = parsed(tdx("doctor", "127.0.0.1:1", "--json").stdout)
    assert kinds_of("doctor", well + ill) == set(VERSION_1["doctor"])


def test_every_line_of_a_clean_up_is_as_the_schema_has_it(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(9 * MIB))
    done = tdx("push", large, receiver.address, "--limit-rate", "4M", "--timeout", "1s", "-q")
    assert (done.returncode, len(receiver.partials()), receiver.stop()) == (75, 1, 0)
    removed = tdx("gc", "--dir", receiver.folder, "--older-than", "0", "--json")
    assert kinds_of("gc", parsed(removed.stdout)) == set(VERSION_1["gc"])


def test_what_is_printed_is_one_line_of_ascii(tdx: Tdx, receiver: RunningReceiver, tmp_path: Path) -> None:
    (tmp_path / "ä\u2028ö").write_bytes(b"x")
    done = tdx("push", tmp_path / "ä\u2028ö", receiver.address, "--json")
    assert done.stdout.isascii()
    assert {json.loads(line)["name"] for line in done.stdout.split("\n")[:-1]} == {"ä\u2028ö"}
