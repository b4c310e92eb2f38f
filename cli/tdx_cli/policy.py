"""``tdx policy``: who may push here, and why."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tdx_cli.options import ONE_JSON, complete_peer, config_option
from tdx_cli.text import say, say_json, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tdx.config import Partial
    from tdx.errors import UsageError
    from tdx.identity.settings import IdentitySettings
    from tdx.model import Identity
    from tdx.policy.rules import Grant, Verdict


@click.group("policy", no_args_is_help=False, short_help="Explain who may push here.")
def command() -> None:
    """The rules of this machine's receiver, as its configuration has them."""


@command.command("check", short_help="Explain what the rules say of somebody.")
@click.argument("text", metavar="IDENTITY", shell_complete=complete_peer)
@config_option("The receiver's configuration.  [default: $TDX_CONFIG, or the user's own]")
@click.option("--user", help="The user that the network would name.")
@click.option("--node", help="The machine that the network would name.")
@click.option("--tag", "tags", multiple=True, help="A tag of that machine; may be repeated.")
@click.option("--capability", "capabilities", multiple=True, help="A capability; may be repeated.")
@click.option("--own", is_flag=True, help="It acts for the receiver's own user.")
@ONE_JSON
def check(
    text: str,
    config: Path | None,
    user: str | None,
    node: str | None,
    tags: tuple[str, ...],
    capabilities: tuple[str, ...],
    own: bool,
    as_json: bool,
) -> None:
    """Say which rules match IDENTITY and what is granted. Exits with 0 if it may push, else with 77.

    IDENTITY is PROVIDER:KEY, as a receiver's log and refusals show it (local:UID, tls:KEY,
    wireguard:KEY or tailscale:ID), or the name or address of a paired device or of a machine on a
    mesh. The options add to what is known of it here, or replace it.
    """
    from tdx.config import default_config_file, load, state_directory
    from tdx.errors import Forbidden, UsageError
    from tdx.identity.settings import IdentitySettings
    from tdx.policy.rules import Policy

    for tag in tags:
        if not tag.startswith("tag:"):
            raise UsageError(f"{tag!r} is not a tag; write it as the network has it: tag:{tag}")
    config = config or default_config_file(os.environ)
    found: Partial = {} if config is None else load(config)
    state = found.get("state") or state_directory(os.environ)
    identity = resolve(text, found.get("identity", IdentitySettings()), state)
    identity = dataclasses.replace(
        identity,
        user=identity.user if user is None else user,
        node=identity.node if node is None else node,
        tags=tags or identity.tags,
        capabilities=capabilities or identity.capabilities,
        own=own or identity.own,
    )
    policy = Policy(found.get("rules", ()))
    try:
        grant, refusal = policy.decide(identity), None
    except Forbidden as error:
        grant, refusal = None, error
    verdicts = policy.explain(identity)
    largest = None if grant is None else _largest(grant, found)
    if as_json:
        say_json(_document(identity, verdicts, grant, largest))
    else:
        say(f"{identity}, by {'the built-in rules: there is no configuration' if config is None else config}")
        for verdict in verdicts:
            say(f"  rule `{verdict.rule}`: {verdict.reason}")
        if grant is not None:
            _say_grant(grant, largest)
    if refusal is not None:
        raise refusal


def resolve(text: str, settings: IdentitySettings, state: Path) -> Identity:
    """The identity that ``text`` stands for, with all that this machine knows of it. UsageError for
    what can be none, UnknownPeer for a name or an address of which nothing is known here."""
    from tdx.errors import UsageError
    from tdx.identity.local import user_name
    from tdx.identity.tls import identity_of
    from tdx.identity.trust import TrustStore
    from tdx.model import Identity, Owner, shown
    from tdx.policy.rules import PROVIDERS

    provider, _, key = text.partition(":")
    if provider not in PROVIDERS:
        return _named(text, settings, state)
    if not key or not key.isprintable():
        raise _no_identity(text)
    stranger = Identity(Owner(text), provider, "", key)
    if provider == "local":
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise UsageError(
                f"not a user id: {shown(key)!r} (write local:UID, for example local:{os.getuid()})"
            )
        uid = int(key)
        owner, node = Owner(f"local:{uid}"), os.uname().nodename
        return Identity(owner, provider, user_name(uid), node, own=uid == os.getuid())
    if provider == "tls":
        trusted = TrustStore(state).find(text)
        return stranger if trusted is None else identity_of(trusted)
    if provider == "wireguard":
        return next((one for one in _configured(settings).values() if one.owner == text), stranger)
    from tdx.control.whois import member

    return member(text, settings) or stranger


def _no_identity(text: str) -> UsageError:
    from tdx.errors import UsageError
    from tdx.model import shown
    from tdx.policy.rules import PROVIDERS

    providers = f"{', '.join(PROVIDERS[:-1])} or {PROVIDERS[-1]}"
    return UsageError(
        f"not an identity: {shown(text)!r} (write PROVIDER:KEY with {providers}, a name or an address)"
    )


def _named(text: str, settings: IdentitySettings, state: Path) -> Identity:
    """Who goes by that name or address."""
    from tdx.control.whois import whois
    from tdx.errors import UsageError

    configured = _configured(settings).get(text.lower())
    if configured is not None:
        return configured
    try:
        found = {known.identity.owner: known.identity for known in whois(text, settings, state)}
    except UsageError:
        raise _no_identity(text) from None
    if len(found) > 1:
        raise UsageError(f"{text} may be {' or '.join(found)}; write one of these")
    (identity,) = found.values()
    return identity


def _configured(settings: IdentitySettings) -> dict[str, Identity]:
    """The WireGuard peers that the configuration names, by their names in lower case."""
    from tdx.model import Identity, Owner

    return {
        peer.name.lower(): Identity(Owner(f"wireguard:{peer.key}"), "wireguard", "", peer.name, own=True)
        for interface in settings.wireguard
        for peer in interface.peers
    }


def _largest(grant: Grant, found: Partial) -> int | None:
    """The largest file: the receiver may have a limit of its own."""
    limits = found.get("limits", {})
    bounds = [bound for bound in (grant.max_file, limits.get("max_file")) if bound is not None]
    return int(min(bounds)) if bounds else None


def _say_grant(grant: Grant, largest: int | None) -> None:
    say(f"may push into: {'the folder of the receiver' if grant.into is None else grant.into + '/'}")
    say(f"conflict modes: {', '.join(sorted(grant.conflict))}")
    say(f"quota: {'none' if grant.quota is None else size_of(grant.quota)}")
    say(f"largest file: {'any' if largest is None else size_of(largest)}")


def _document(
    identity: Identity, verdicts: Sequence[Verdict], grant: Grant | None, largest: int | None
) -> dict[str, object]:
    granted = None
    if grant is not None:
        granted = {
            "into": grant.into,
            "conflict": sorted(grant.conflict),
            "quota": grant.quota,
            "max_file": largest,
        }
    return {
        "event": "policy",
        "identity": dataclasses.asdict(identity),
        "allowed": grant is not None,
        "rule": verdicts[-1].rule,
        "rules": [dataclasses.asdict(verdict) for verdict in verdicts],
        "grant": granted,
    }
