"""``tdx doctor``: what stands between this machine and a peer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tdx.model import shown
from tdx_cli.options import JSON, complete_peer, config_option, state_option
from tdx_cli.text import say, say_json, size_of
from tdx_cli.values import SIZE

if TYPE_CHECKING:
    from tdx.control.doctor import Doctor, Step


@click.command("doctor", short_help="Find out what keeps a peer from being reached, or slow.")
@click.argument("peer", metavar="PEER", shell_complete=complete_peer)
@JSON
@click.option(
    "--size",
    type=SIZE,
    metavar="SIZE",
    default=64 << 20,
    help="How much to send to measure; nothing of it is kept.  [default: 64M]",
)
@config_option()
@state_option("Where this device's key and the trusted devices are kept.")
def command(peer: str, as_json: bool, size: int, config: Path | None, state: Path | None) -> int:
    """Look at every step of a push to PEER: its name, its addresses, who it is, the way there, what
    it lets this machine do, its space and clock, and how fast bytes arrive and what holds them up.

    Exits with 0 if all is well, else with the code of the first thing that is not.
    """
    import asyncio
    import os

    from tdx.config import load_identity, load_state
    from tdx.control.doctor import Doctor
    from tdx.control.resolve import Peer

    steps: list[Step] = []

    def report(step: Step) -> None:
        steps.append(step)
        if as_json:
            say_json(_document(step))
        else:
            say(_line(step))

    async def examine() -> int:
        doctor = Doctor(Peer.parse(peer), settings, kept, size, report, size_of)
        return await _until_stopped(doctor)

    settings, kept = load_identity(config, os.environ), state or load_state(config, os.environ)
    code = asyncio.run(examine())
    if as_json:
        first = next((step.name for step in steps if step.exit_code), None)
        say_json({"event": "summary", "peer": peer, "failed": first, "exit_code": code})
    return code


async def _until_stopped(doctor: Doctor) -> int:
    """Run it; the first signal makes it take back what it has sent, the second ends the process."""
    import asyncio

    from tdx.errors import Interrupted
    from tdx_cli.stopping import told_of_signals

    running = asyncio.create_task(doctor.run())
    with told_of_signals(lambda _: running.cancel()):
        await asyncio.wait([running])
    if running.cancelled():
        raise Interrupted("interrupted")
    return running.result()


def _line(step: Step) -> str:
    text = f"{step.text}; {step.advice}" if step.advice else step.text
    return f"{step.state:6}  {step.name:10}  {shown(text)}"


def _document(step: Step) -> dict[str, object]:
    return {
        "event": "step",
        "step": step.name,
        "state": step.state,
        "text": step.text,
        "advice": step.advice or None,
        "exit_code": step.exit_code,
        **step.facts,
    }
