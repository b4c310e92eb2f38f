from __future__ import annotations

from pathlib import Path

import pytest

from tdx.config import load
from tdx.errors import ConfigError
from tdx.model import Conflict
from tdx.policy.rules import ALL_CONFLICTS, Rule


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tdx.toml"


def rules(file: Path, text: str) -> tuple[Rule, ...]:
    file.write_text(text)
    return load(file).get("rules", ())


def test_rules_keep_their_order_and_allow_everything_they_do_not_bound(file: Path) -> None:
    found = rules(file, '[[rule]]\nname = "b"\nuser = "ann"\n[[rule]]\nname = "a"\nkey = "tls:00"\n')
    assert found == (Rule("b", user="ann"), Rule("a", key="tls:00"))
    assert found[0].allow
    assert found[0].conflict == ALL_CONFLICTS


@pytest.mark.parametrize(
    ("matcher", "value"),
    [
        ("user", "ann@example.org"),
        ("node", "laptop"),
        ("tag", "tag:backup"),
        ("key", "wireguard:" + "A" * 43 + "="),
        ("key", "nodeid"),
        ("capability", "example.org/cap/tdx"),
        ("provider", "tailscale"),
    ],
)
def test_a_rule_may_match_by_any_one_thing(file: Path, matcher: str, value: str) -> None:
    (rule,) = rules(file, f'[[rule]]\nname = "a"\n{matcher} = "{value}"\n')
    assert getattr(rule, matcher) == value


def test_sizes_are_written_as_people_write_them(file: Path) -> None:
    (rule,) = rules(file, '[[rule]]\nname = "a"\nuser = "b"\nquota = "1.5GB"\nmax_file = 1_000\n')
    assert (rule.quota, rule.max_file) == (1_500_000_000, 1000)


def test_conflict_modes_are_those_listed(file: Path) -> None:
    (rule,) = rules(file, '[[rule]]\nname = "a"\nuser = "b"\nconflict = ["skip", "skip", "error"]\n')
    assert rule.conflict == {Conflict.SKIP, Conflict.ERROR}


A = '[[rule]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("rule = 1", "rule must be a list of tables"),
        ('[rule]\nname = "a"', "rule must be a list of tables"),
        ("rule = [1]", "rule must be a list of tables"),
        ('[[rule]]\nuser = "b"', "rule 1: name is missing"),
        ('[[rule]]\nname = ""', "rule 1: name must"),
        ('[[rule]]\nname = " a"\nuser = "b"', 'rule " a": name must'),
        ('[[rule]]\nname = "a\\nb"\nuser = "b"', "rule 1: name must"),
        ('[[rule]]\nname = "a`"\nuser = "b"', 'rule "a`": name may not'),
        ('[[rule]]\nname = "default"\nuser = "b"', 'rule "default": name is that of a rule'),
        ('[[rule]]\nname = "yourself"\nuser = "b"', 'rule "yourself": name is that of a rule'),
        ('[[rule]]\nname = "identified"\nuser = "b"', 'rule "identified": name is that of a rule'),
        (A, 'rule "a": matches nobody: say whom it is about with at least one of user'),
        (A + "allow = true", 'rule "a": matches nobody'),
        (A + 'user = "b"\n' + A + 'user = "c"', 'rule "a": name is that of an earlier rule'),
        (A + 'users = "b"', 'rule "a": users is not a known key'),
        (A + 'user = ""', 'rule "a": user must'),
        (A + 'user = ["b"]', 'rule "a": user must'),
        (A + 'user = "b"\nallow = "no"', 'rule "a": allow must'),
        (A + 'tag = "backup"', 'rule "a": tag is written as the network has it: tag:backup'),
        (A + 'provider = "tailscaled"', 'rule "a": provider must be one of'),
        (A + 'key = "wg:AAAA"', 'rule "a": key must be PROVIDER:KEY'),
        (A + 'key = "tls:"', 'rule "a": key must be PROVIDER:KEY'),
        (A + 'user = "b"\ninto = "../x"', 'rule "a": into is not a folder below'),
        (A + 'user = "b"\ninto = "/x"', 'rule "a": into is not a folder below'),
        (A + 'user = "b"\ninto = "x/.tdx"', 'rule "a": into is not a folder below'),
        (A + 'user = "b"\ninto = "x/"', 'rule "a": into is not a folder below'),
        (A + 'user = "b"\nconflict = "skip"', 'rule "a": conflict must'),
        (A + 'user = "b"\nconflict = []', 'rule "a": conflict must'),
        (A + 'user = "b"\nconflict = ["keep"]', 'rule "a": conflict must'),
        (A + 'user = "b"\nquota = 0', 'rule "a": quota must'),
        (A + 'user = "b"\nquota = "0"', 'rule "a": quota must'),
        (A + 'user = "b"\nquota = -1', 'rule "a": quota must'),
        (A + 'user = "b"\nquota = true', 'rule "a": quota must'),
        (A + 'user = "b"\nquota = 1.5', 'rule "a": quota must'),
        (A + 'user = "b"\nquota = "lots"', 'rule "a": quota is wrong'),
        (A + 'user = "b"\nmax_file = "10Gbit"', 'rule "a": max_file is wrong'),
    ],
)
def test_what_is_wrong_is_named_with_its_key_and_its_file(file: Path, text: str, where: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.message.startswith(f"{file}: {where}")
    assert caught.value.exit_code == 78
