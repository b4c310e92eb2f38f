from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tdx.errors import BadName, Forbidden
from tdx.model import Conflict, FileName, Identity, Owner
from tdx.policy.rules import (
    ALL_CONFLICTS,
    BUILT_IN,
    DEFAULT,
    IDENTIFIED,
    NOTHING_GRANTED,
    PROVIDERS,
    YOURSELF,
    Grant,
    Policy,
    Rule,
)

STRANGER = Identity(
    Owner("tailscale:n1"), "tailscale", "ann@example.org", "Laptop", ("tag:a", "tag:b"), ("example.org/cap",)
)

# --- what a rule matches ----------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        Rule("r", user="ann@example.org"),
        Rule("r", node="laptop"),
        Rule("r", node="LAPTOP"),
        Rule("r", tag="tag:a"),
        Rule("r", tag="tag:b"),
        Rule("r", key="tailscale:n1"),
        Rule("r", key="n1"),
        Rule("r", capability="example.org/cap"),
        Rule("r", provider="tailscale"),
        Rule("r", provider="tailscale", user="ann@example.org", node="laptop", tag="tag:a", key="n1"),
    ],
)
def test_a_rule_matches_where_all_that_it_names_is_true(rule: Rule) -> None:
    assert rule.mismatch(STRANGER) is None
    assert Policy([rule]).decide(STRANGER).rule == "r"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (Rule("r", user="ann"), "user is ann@example.org, not ann"),
        (Rule("r", user="ANN@EXAMPLE.ORG"), "user is ann@example.org, not ANN@EXAMPLE.ORG"),
        (Rule("r", node="desk"), "node is laptop, not desk"),
        (Rule("r", tag="tag:c"), "tag is tag:a, tag:b, not tag:c"),
        (Rule("r", key="tls:n1"), "key is tailscale:n1, not tls:n1"),
        (Rule("r", key="tailscale"), "key is tailscale:n1, not tailscale"),
        (Rule("r", capability="x"), "capability is example.org/cap, not x"),
        (Rule("r", provider="tls"), "provider is tailscale, not tls"),
        (Rule("r", user="ann@example.org", node="desk"), "node is laptop, not desk"),
    ],
)
def test_a_rule_that_does_not_match_says_why(rule: Rule, reason: str) -> None:
    assert rule.mismatch(STRANGER) == reason


def test_what_is_not_known_of_somebody_matches_nothing() -> None:
    bare = Identity(Owner("wireguard:K"), "wireguard", "", "")
    assert Rule("r", user="ann").mismatch(bare) == "user is unknown, not ann"
    assert Rule("r", tag="tag:a").mismatch(bare) == "tag is none, not tag:a"


# --- what a policy decides --------------------------------------------------------

NAMES = st.sampled_from(["ann", "bob", "laptop", "desk", ""])
IDENTITIES = st.builds(
    lambda provider, key, **more: Identity(Owner(f"{provider}:{key}"), provider, **more),
    provider=st.sampled_from(PROVIDERS),
    key=st.sampled_from(["1", "2"]),
    user=NAMES,
    node=NAMES,
    tags=st.lists(st.sampled_from(["tag:a", "tag:b"]), unique=True).map(tuple),
    capabilities=st.lists(st.sampled_from(["c", "d"]), unique=True).map(tuple),
    own=st.booleans(),
)


def maybe(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str | None]:
    return st.none() | strategy


RULES = st.builds(
    Rule,
    name=st.uuids().map(str),
    allow=st.booleans(),
    user=maybe(st.sampled_from(["ann", "bob"])),
    node=maybe(st.sampled_from(["Laptop", "desk"])),
    tag=maybe(st.sampled_from(["tag:a", "tag:b"])),
    key=maybe(st.sampled_from(["1", "tls:1", "local:2"])),
    capability=maybe(st.sampled_from(["c", "d"])),
    provider=maybe(st.sampled_from(PROVIDERS)),
    into=st.sampled_from([None, FileName("in")]),
    conflict=st.frozensets(st.sampled_from(Conflict)),
    quota=st.none() | st.integers(1, 100),
    max_file=st.none() | st.integers(1, 100),
)


def granted(rules: Sequence[Rule], identity: Identity) -> Grant | None:
    try:
        return Policy(rules).decide(identity)
    except Forbidden:
        return None


@given(st.lists(RULES, max_size=6), IDENTITIES)
def test_the_first_rule_that_matches_decides(rules: list[Rule], identity: Identity) -> None:
    first = next((rule for rule in rules if rule.mismatch(identity) is None), None)
    assume(first is not None)
    assert first is not None
    grant = granted(rules, identity)
    assert grant == granted([first], identity)
    if first.allow:
        assert grant == Grant(first.name, first.into, first.conflict, first.quota, first.max_file)
    else:
        assert grant is None


@given(st.lists(RULES, max_size=6), IDENTITIES)
def test_whom_no_rule_matches_is_let_in_only_as_oneself(rules: list[Rule], identity: Identity) -> None:
    others = [rule for rule in rules if rule.mismatch(identity) is not None]
    assert granted(others, identity) == (Grant(YOURSELF) if identity.own else None)


@given(st.lists(RULES, max_size=5), RULES, st.integers(0, 5), IDENTITIES)
def test_a_rule_that_refuses_never_widens_what_is_granted(
    rules: list[Rule], refusing: Rule, at: int, identity: Identity
) -> None:
    more = [*rules[:at], replace(refusing, allow=False), *rules[at:]]
    assert granted(more, identity) in (None, granted(rules, identity))


@given(st.lists(RULES, max_size=6), IDENTITIES)
def test_the_explanation_ends_with_the_rule_that_decides(rules: list[Rule], identity: Identity) -> None:
    verdicts = Policy(rules).explain(identity)
    assert [verdict.decides for verdict in verdicts] == [False] * (len(verdicts) - 1) + [True]
    grant = granted(rules, identity)
    if grant is not None:
        assert verdicts[-1].rule == grant.rule
        assert verdicts[-1].reason.endswith("allows")
    else:
        assert verdicts[-1].reason.endswith("refuses")
        with pytest.raises(Forbidden, match=f"rule `{verdicts[-1].rule}`"):
            Policy(rules).decide(identity)


# --- refusals -----------------------------------------------------------------------


def test_nobody_is_refused_whatever_the_rules_are() -> None:
    with pytest.raises(Forbidden, match=f"rule `{IDENTIFIED}`.*tdx pair"):
        Policy([Rule("everybody", provider=provider) for provider in PROVIDERS]).decide(None)


@pytest.mark.parametrize(
    ("identity", "says"),
    [
        (STRANGER, r'rule `default`: no rule allows ann.*\[\[rule\]\] with tag = "tag:a" to its'),
        (replace(STRANGER, tags=()), r'with key = "tailscale:n1".*`tdx policy check tailscale:n1` there'),
        (
            Identity(Owner("local:7"), "local", "bob", "here"),
            r'push as the user that the receiver runs as, or.*with key = "local:7"',
        ),
    ],
)
def test_a_refusal_says_how_to_allow_it(identity: Identity, says: str) -> None:
    with pytest.raises(Forbidden, match=says):
        Policy().decide(identity)


def test_a_rule_that_refuses_is_named_and_an_exception_goes_before_it() -> None:
    with pytest.raises(Forbidden, match=r"rule `no laptops` refuses .*\[\[rule\]\] .* before it to its"):
        Policy([Rule("no laptops", allow=False, node="laptop")]).decide(STRANGER)


def test_what_a_refusal_says_of_an_identity_fits_a_line() -> None:
    nasty = Identity(Owner("tailscale:n1"), "tailscale", "a\nb", "c\r", ("tag:\x07",))
    with pytest.raises(Forbidden) as caught:
        Policy().decide(nasty)
    assert caught.value.message.isprintable()
    assert all(verdict.reason.isprintable() for verdict in Policy([Rule("r", user="x")]).explain(nasty))


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (Identity(Owner("local:7"), "local", "bob", "here"), "bob is not the user that the receiver runs as"),
        (STRANGER, "a tagged node belongs to no user"),
        (replace(STRANGER, tags=()), "it does not act for the receiver's own user"),
    ],
)
def test_why_somebody_is_not_oneself(identity: Identity, reason: str) -> None:
    yourself, default = Policy().explain(identity)
    assert (yourself.rule, yourself.reason) == (YOURSELF, reason)
    assert default.rule == DEFAULT


# --- grants -------------------------------------------------------------------------


def test_a_grant_places_a_name_in_its_folder() -> None:
    assert Grant("r").place(FileName("a/b")) == "a/b"
    assert Grant("r", into=FileName("in/here")).place(FileName("a/b")) == "in/here/a/b"
    with pytest.raises(BadName, match="longer than"):
        Grant("r", into=FileName("in")).place(FileName("/".join(["x" * 255] * 16)))


@given(st.frozensets(st.sampled_from(Conflict)), st.sampled_from(Conflict))
def test_a_conflict_mode_is_allowed_only_if_it_is_granted(modes: frozenset[Conflict], wish: Conflict) -> None:
    grant = Grant("r", conflict=modes)
    if wish in modes:
        grant.check_conflict(wish)
    else:
        with pytest.raises(Forbidden, match=f"rule `r` does not allow --conflict {wish}; it allows "):
            grant.check_conflict(wish)


def test_yourself_is_granted_everything_and_nothing_is_granted_before_a_decision() -> None:
    oneself = Policy().decide(replace(STRANGER, own=True))
    assert oneself == Grant(YOURSELF, None, ALL_CONFLICTS, None, None)
    assert (NOTHING_GRANTED.quota, NOTHING_GRANTED.max_file, NOTHING_GRANTED.conflict) == (0, 0, frozenset())
    assert {YOURSELF, DEFAULT, IDENTIFIED} == BUILT_IN
