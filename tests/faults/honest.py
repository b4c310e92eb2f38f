"""Clients who send files, each in another way, and want them to arrive."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

from faults.traffic import Act, Traffic, content, sha256_field
from support import bundle_wire
from support.processes import Push
from support.proxy import CuttingProxy, at_random
from support.wire import Answer, head
from tdx.control.progress import Tally
from tdx.control.push import PushOptions
from tdx.control.resolve import Peer
from tdx.control.sender import Sender, SenderOptions

KIB, MIB = 1 << 10, 1 << 20


async def many_small_files_on_one_connection(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        for _ in range(chance.randint(1, 20)):
            data, digest = content(chance, 0, 64 * KIB)
            name = traffic.new_name("small")
            await _there(traffic, await line.request("PUT", f"/files/{name}", data), name, digest, len(data))
            await asyncio.sleep(chance.uniform(0, 0.1))


async def one_file_with_its_digest(traffic: Traffic, chance: random.Random, _: int) -> None:
    data, digest = content(chance, MIB, 8 * MIB)
    name = traffic.new_name("middle")
    answer = await traffic.ask("PUT", f"/files/{name}", data, {"Repr-Digest": sha256_field(digest)})
    await _there(traffic, answer, name, digest, len(data))
    assert answer.document["verified"] is True


async def a_chunked_body(traffic: Traffic, chance: random.Random, _: int) -> None:
    data, digest = content(chance, 0, 2 * MIB)
    name = traffic.new_name("chunked")
    async with traffic.line() as line:
        await line.send(
            f"PUT /files/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        at = 0
        while at < len(data):
            part = data[at : at + chance.randint(1, 128 * KIB)]
            await line.send(b"%x\r\n%b\r\n" % (len(part), bytes(part)))
            at += len(part)
        await line.send(b"0\r\n\r\n")
        await _there(traffic, await line.answer(), name, digest, len(data))


async def a_patient_one(traffic: Traffic, chance: random.Random, _: int) -> None:
    """Slow, and yet not too slow."""
    data, digest = content(chance, 32 * KIB, 64 * KIB)
    name = traffic.new_name("patient")
    async with traffic.line() as line:
        await line.send(
            f"PUT /files/{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        )
        for at in range(0, len(data), 4 * KIB):
            await line.send(data[at : at + 4 * KIB])
            if not traffic.over:
                await asyncio.sleep(0.25)
        await _there(traffic, await line.answer(), name, digest, len(data))


async def parts_over_connections_that_break(traffic: Traffic, chance: random.Random, _: int) -> None:
    """As ``curl -C`` does: ask how far it has come, go on from there, until it is there."""
    data, digest = content(chance, MIB, 6 * MIB)
    name, size = traffic.new_name("parts"), len(data)
    target, at = f"/files/{name}", 0
    for _ in range(3):
        async with traffic.line() as line:
            fields = {"Content-Range": f"bytes {at}-{size - 1}/{size}", "Content-Length": size - at}
            await line.send(head("PUT", target, fields))
            await line.send(data[at : at + chance.randint(0, (size - at) // 2)])
            await asyncio.sleep(0.05)
            (line.end if chance.random() < 0.5 else line.reset)()
        at = await _stands(traffic, target)
        traffic.counts["cut connections"] += 1
    fields = {"Content-Range": f"bytes {at}-{size - 1}/{size}"}
    await _there(traffic, await traffic.ask("PUT", target, data[at:], fields), name, digest, size)


async def _stands(traffic: Traffic, target: str) -> int:
    """Upload-Offset, once it moves no more; 0 where nothing was kept."""
    last = -1
    while True:
        answer = await traffic.ask("HEAD", target)
        at = int(answer.headers["upload-offset"]) if answer.status == 204 else 0
        if at == last:
            return at
        last = at
        await asyncio.sleep(0.2)


async def appends(traffic: Traffic, chance: random.Random, _: int) -> None:
    """As the draft of resumable uploads has it."""
    data, digest = content(chance, 1, 3 * MIB)
    name, size = traffic.new_name("appended"), len(data)
    created = await traffic.ask(
        "POST", f"/files/{name}", b"", {"Upload-Complete": "?0", "Upload-Length": size}
    )
    assert created.status == 201, created.body
    target, at = created.headers["location"], 0
    answer = created
    while at < size:
        part = data[at : at + chance.randint(1, MIB)]
        last = at + len(part) == size
        fields = {"Content-Type": "application/partial-upload", "Upload-Complete": f"?{int(last)}"}
        wrong = await traffic.ask("PATCH", target, part[:10], {**fields, "Upload-Offset": at + 1})
        traffic.denied(wrong, 409)
        answer = await traffic.ask("PATCH", target, part, {**fields, "Upload-Offset": at})
        assert answer.status in (200, 201, 204), answer.body
        at += len(part)
    await _there(traffic, answer, name, digest, size)


async def a_bundle(traffic: Traffic, chance: random.Random, _: int) -> None:
    files = {traffic.new_name("bundled"): content(chance, 0, 16 * KIB) for _ in range(chance.randint(1, 80))}
    body = bundle_wire.bundle({name: bytes(data) for name, (data, _) in files.items()})
    answer = await traffic.ask("POST", "/files", body, bundle_wire.fields())
    said = bundle_wire.said(answer)
    assert said == [("published", name) for name in files], said
    for name, (data, digest) in files.items():
        await traffic.arrived(name, digest, len(data))


async def a_push(traffic: Traffic, chance: random.Random, number: int) -> None:
    await _push(traffic, chance, Peer("127.0.0.1", traffic.receiver.port))


async def a_push_over_connections_that_break(traffic: Traffic, chance: random.Random, number: int) -> None:
    plan = at_random(chance.randrange(1 << 30), 3, 12 * MIB)
    proxy = CuttingProxy(traffic.receiver.port, plan)
    try:
        await _push(traffic, chance, proxy.peer)
    finally:
        traffic.counts["cut connections"] += min(3, proxy.accepted)
        await asyncio.to_thread(proxy.close)


async def _push(traffic: Traffic, chance: random.Random, peer: Peer) -> None:
    source, digest, size = await asyncio.to_thread(_file, traffic, chance, 0, 20 * MIB)
    options = PushOptions(state=traffic.area / "sender")
    async with Sender(peer, SenderOptions(stall_timeout=30.0, retries=20)) as sender:
        result = await sender.push_file(source, options, Tally())
    assert result.path == source.name, result
    source.unlink()
    traffic.counts["pushes"] += 1
    await traffic.arrived(source.name, digest, size)


async def a_push_of_its_own_process(traffic: Traffic, chance: random.Random, _: int) -> None:
    """Sometimes it is ended in the middle, and then run again with ``--resume``."""
    source, digest, size = await asyncio.to_thread(_file, traffic, chance, 0, 24 * MIB)
    arguments = (source, traffic.receiver.address, "--resume")
    if chance.random() < 0.5:
        push = traffic.processes.push(*arguments, "--limit-rate", "16M")
        await asyncio.sleep(chance.uniform(0.2, 1.0))
        push.signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        if await asyncio.to_thread(push.wait) != 0:
            push = traffic.processes.push(*arguments)
            traffic.counts["resumes"] += 1
    else:
        push = traffic.processes.push(*arguments)
    await asyncio.to_thread(_ends_well, push)
    source.unlink()
    traffic.counts["push processes"] += 1
    await traffic.arrived(source.name, digest, size)


def _ends_well(push: Push) -> None:
    assert push.wait(60) == 0, push.log()
    assert push.last["event"] in ("done", "identical"), push.log()


async def a_folder_pushed(traffic: Traffic, chance: random.Random, _: int) -> None:
    folder = traffic.area / traffic.new_name("folder")
    folder.mkdir()
    files: dict[str, tuple[str, int]] = {}
    for number in range(chance.randint(1, 60)):
        data, digest = content(chance, 0, 400 * KIB)
        (folder / str(number)).write_bytes(data)
        files[f"{folder.name}/{number}"] = digest, len(data)
    push = traffic.processes.push("-r", folder, traffic.receiver.address)
    assert await asyncio.to_thread(push.wait) == 0, push.log()
    traffic.counts["push processes"] += 1
    for name, (digest, size) in files.items():
        await traffic.arrived(name, digest, size)
        (traffic.area / name).unlink()
    folder.rmdir()
    (traffic.receiver.folder / folder.name).rmdir()


async def curl(traffic: Traffic, chance: random.Random, _: int) -> None:
    source, digest, size = await asyncio.to_thread(_file, traffic, chance, 0, 8 * MIB)
    target = f"{traffic.receiver.url}/files/{source.name}"
    end = traffic.processes.curl("-T", source, target)
    assert await asyncio.to_thread(end.wait) == 0, end.log()
    assert end.status == 201, end.log()
    source.unlink()
    traffic.counts["curl processes"] += 1
    await traffic.arrived(source.name, digest, size)


async def _there(traffic: Traffic, answer: Answer, name: str, digest: str, size: int) -> None:
    assert answer.status in (200, 201), (answer.status, answer.body)
    await traffic.arrived(name, digest, size)


def _file(traffic: Traffic, chance: random.Random, least: int, most: int) -> tuple[Path, str, int]:
    data, digest = content(chance, least, most)
    path = traffic.area / traffic.new_name("pushed")
    path.write_bytes(data)
    return path, digest, len(data)


HONEST: dict[Act, int] = {
    many_small_files_on_one_connection: 12,
    one_file_with_its_digest: 4,
    a_chunked_body: 4,
    a_patient_one: 12,
    parts_over_connections_that_break: 4,
    appends: 4,
    a_bundle: 3,
    a_push: 2,
    a_push_over_connections_that_break: 2,
    a_push_of_its_own_process: 1,
    a_folder_pushed: 1,
    curl: 1,
}
"""How many of each there are at a time."""
