"""What a file says of who may push."""

from __future__ import annotations

from typing import Final

from tdx.config.tables import Table
from tdx.errors import BadName
from tdx.model import Conflict, FileName
from tdx.policy.rules import ALL_CONFLICTS, BUILT_IN, PROVIDERS, Rule
from tdx.proto.names import check_name

MATCHERS: Final = ("user", "node", "tag", "key", "capability", "provider")
RULE_KEYS: Final = ("name", "allow", *MATCHERS, "into", "conflict", "quota", "max_file")


def rules_of(table: Table) -> tuple[Rule, ...]:
    """The rules in the top-level ``table`` of a file, in their order. ConfigError."""
    rules: list[Rule] = []
    for each in table.tables("rule") if "rule" in table else []:
        rule = _rule(each)
        if rule.name in (other.name for other in rules):
            raise each.wrong("name", "is that of an earlier rule already")
        rules.append(rule)
    return tuple(rules)


def _rule(table: Table) -> Rule:
    table.only(RULE_KEYS)
    table.require("name")
    name = table.label("name")
    if name in BUILT_IN:
        raise table.wrong("name", "is that of a rule which is always there")
    if "`" in name:
        raise table.wrong("name", "may not contain a backquote")
    if not any(matcher in table for matcher in MATCHERS):
        raise table.wrong(
            "matches nobody:", f"say whom it is about with at least one of {', '.join(MATCHERS)}"
        )
    return Rule(
        name=name,
        allow=table.flag("allow") if "allow" in table else True,
        user=table.label("user") if "user" in table else None,
        node=table.label("node") if "node" in table else None,
        tag=_tag(table) if "tag" in table else None,
        key=_key(table) if "key" in table else None,
        capability=table.label("capability") if "capability" in table else None,
        provider=table.choice("provider", PROVIDERS) if "provider" in table else None,
        into=_into(table) if "into" in table else None,
        conflict=_conflict(table) if "conflict" in table else ALL_CONFLICTS,
        quota=table.size("quota") if "quota" in table else None,
        max_file=table.size("max_file") if "max_file" in table else None,
    )


def _tag(table: Table) -> str:
    tag = table.label("tag")
    if not tag.startswith("tag:"):
        raise table.wrong("tag", f"is written as the network has it: tag:{tag}")
    return tag


def _key(table: Table) -> str:
    key = table.label("key")
    provider, colon, rest = key.partition(":")
    if colon and (provider not in PROVIDERS or not rest):
        raise table.wrong(
            "key", f"must be PROVIDER:KEY with one of {', '.join(PROVIDERS)}, or KEY, not {key!r}"
        )
    return key


def _into(table: Table) -> FileName:
    try:
        return check_name(table.text("into"))
    except BadName as error:
        raise table.wrong("into", f"is not a folder below the receiver's: {error.message}") from None


def _conflict(table: Table) -> frozenset[Conflict]:
    modes = table.texts("conflict")
    try:
        found = frozenset(Conflict(mode) for mode in modes)
    except ValueError:
        found = frozenset[Conflict]()
    if not found:
        raise table.wrong("conflict", f"must list some of {', '.join(Conflict)}, not {modes!r}")
    return found
