from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tdx.config.batch import DEFAULT_KEYS, ITEM_KEYS, Batch, BatchItem, load_batch
from tdx.errors import ConfigError
from tdx.model import Conflict
from tdx.policy.bandwidth import parse_schedule

ITEM = '[[item]]\nname = "a"\nsources = ["x"]\n'
WHOLE = ITEM + 'peer = "nas"\nconflict = "skip"\n'
ENV = {"DATA": "/srv/data", "ODD": "/srv/[1]*", "EMPTY": ""}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nightly.toml"


def loaded(file: Path, text: str) -> Batch:
    file.write_text(text)
    return load_batch(file, ENV)


def refused(file: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        loaded(file, text)
    assert str(file) in error.value.message
    assert "\n" not in error.value.message
    return error.value.message


def test_a_small_batch_is_called_as_its_file_and_does_one_thing_at_a_time(file: Path) -> None:
    batch = loaded(file, WHOLE)
    item = BatchItem("a", (f"{file.parent}/x",), ("nas",), Conflict.SKIP)
    assert batch == Batch(file, "nightly", (item,))
    assert (batch.parallel, batch.jitter, batch.timeout) == (1, None, None)
    assert (item.resume, item.recursive, item.optional, item.retries, item.stall_timeout) == (
        True,
        False,
        False,
        8,
        60.0,
    )


def test_every_key_is_understood(file: Path) -> None:
    batch = loaded(
        file,
        """
        name = "all of it"
        parallel = 3
        jitter = "15m"
        timeout = "6h"
        metrics_textfile = "nightly.prom"
        metrics_push = "http://localhost:9091"
        [defaults]
        peers = ["nas", "desk:8390"]
        conflict = "error"
        [[item]]
        name = "a"
        sources = ["/x"]
        as = "y"
        into = "backups/here"
        conflict = "overwrite"
        recursive = true
        optional = true
        resume = false
        limit_rate = "20M"
        retries = 2
        timeout = "1h"
        stall_timeout = 30
        digest = "sha-256"
        streams = 4
        whole = true
        links = "preserve"
        exclude = ["*.tmp", "cache/"]
        include = ["keep.tmp"]
        metrics_interval = "1d"
        """,
    )
    assert (batch.name, batch.parallel, batch.jitter, batch.timeout) == ("all of it", 3, 900.0, 21600.0)
    assert (batch.metrics_textfile, batch.metrics_push) == (
        file.parent / "nightly.prom",
        "http://localhost:9091",
    )
    (item,) = batch.items
    assert dataclasses.asdict(item) == {
        "name": "a",
        "sources": ("/x",),
        "peers": ("nas", "desk:8390"),
        "conflict": Conflict.OVERWRITE,
        "into": "backups/here",
        "called": "y",
        "recursive": True,
        "optional": True,
        "resume": False,
        "limit_rate": dataclasses.asdict(parse_schedule("20M")),
        "retries": 2,
        "timeout": 3600.0,
        "stall_timeout": 30.0,
        "digest": "sha-256",
        "streams": 4,
        "whole": True,
        "links": "preserve",
        "exclude": ("*.tmp", "cache/"),
        "include": ("keep.tmp",),
        "metrics_interval": 86400.0,
    }


def test_the_path_of_a_batch_is_absolute(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(WHOLE)
    monkeypatch.chdir(file.parent)
    assert load_batch(Path("nightly.toml"), ENV) == loaded(file, WHOLE)


def test_an_item_says_otherwise_than_the_defaults(file: Path) -> None:
    text = '[defaults]\npeer = "nas"\nconflict = "skip"\nretries = 1\n' + ITEM + 'peers = ["b", "c"]\n'
    (item,) = loaded(file, text).items
    assert (item.peers, item.conflict, item.retries) == (("b", "c"), Conflict.SKIP, 1)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("x", "{folder}/x"),
        ("./x/**/*.jpg", "{folder}/./x/**/*.jpg"),
        ("/etc/hosts", "/etc/hosts"),
        ("~", "/home/of"),
        ("~/Pictures/*", "/home/of/Pictures/*"),
        ("$DATA/x", "/srv/data/x"),
        ("${DATA}s/x", "/srv/datas/x"),
        ("a$DATA", "{folder}/a/srv/data"),
        ("$ODD/*", "/srv/[[]1][*]/*"),
        ("price in $$", "{folder}/price in $"),
        ("100 $ or [$]x", "{folder}/100 $ or [$]x"),
        ("~/$DATA", "/home/of//srv/data"),
    ],
)
def test_a_source_starts_at_the_folder_of_the_file_at_a_home_or_at_the_root(
    text: str, pattern: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of")
    (item,) = loaded(file, WHOLE.replace('"x"', f"'{text}'")).items
    assert item.sources == (pattern.format(folder=file.parent),)


def test_what_the_folder_of_the_file_is_called_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]*"
    folder.mkdir()
    (item,) = loaded(folder / "f.toml", WHOLE).items
    assert item.sources == (f"{tmp_path}/a[[]b][*]/x",)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "item is missing"),
        ("item = []", "item is an empty list"),
        ("[item]\n", "item must be a list of tables"),
        ("nmae = 'x'\n" + WHOLE, "nmae is not a known key"),
        (WHOLE + "recursve = true\n", 'item "a": recursve is not a known key'),
        ("[defaults]\nsources = ['x']\n" + WHOLE, "defaults.sources is not a known key"),
        ("[defaults]\nretries = -1\n" + WHOLE, "defaults.retries must be a whole number from 0 to 1000"),
        (WHOLE + WHOLE, 'item "a": name is that of an earlier item'),
        ("[[item]]\nsources = ['x']\n", "item 1: name is missing"),
        ("[[item]]\nname = 'a'\n", 'item "a": sources is missing'),
        (WHOLE.replace('["x"]', "[]"), "sources must list at least one path"),
        (WHOLE.replace('["x"]', '"x"'), "sources must be a list of strings"),
        (WHOLE.replace('"x"', '"a\\u0000"'), "sources lists what cannot be a path"),
        (WHOLE.replace('"x"', '"$NOWHERE/x"'), "the variable NOWHERE is not set"),
        (WHOLE.replace('"x"', '"${EMPTY}/x"'), "the variable EMPTY is not set, or empty"),
        (WHOLE.replace('"x"', '"~nobody-of-that-name/x"'), "home of an unknown user"),
        (WHOLE.replace('"x"', '"x", "y"') + "as = 'z'\n", "as names one source"),
        (WHOLE + "as = '../z'\n", "as is not a name that a receiver stores"),
        (WHOLE + "into = '/z'\n", "into is not a name that a receiver stores"),
        (ITEM + "conflict = 'skip'\n", 'item "a": peer is missing'),
        (WHOLE + "peers = ['b']\n", "leave one of the two out"),
        (ITEM + "peers = []\nconflict = 'skip'\n", "peers must list at least one peer"),
        (WHOLE.replace('"skip"', '"replace"'), "conflict must be one of rename, overwrite, skip, error"),
        ("parallel = 0\n" + WHOLE, "parallel must be a whole number from 1 to 64, not 0"),
        ("parallel = true\n" + WHOLE, "parallel must be a whole number"),
        ("jitter = '15 minutes'\n" + WHOLE, "jitter is wrong: '15 minutes' is not a duration"),
        ("jitter = 0\n" + WHOLE, "jitter must be a time above 0"),
        ("timeout = -1\n" + WHOLE, "timeout must be a time above 0"),
        ("timeout = inf\n" + WHOLE, "timeout must be a time above 0"),
        ("name = 'a\nb'\n" + WHOLE, "not a TOML file"),
        ('name = "a\\nb"\n' + WHOLE, "name must be one line"),
        (WHOLE + "limit_rate = 'fast'\n", "limit_rate is wrong: 'fast' is not a rate"),
        (WHOLE + "limit_rate = true\n", "limit_rate must be a non-empty string"),
        (WHOLE + "limit_rate = 1.5\n", "limit_rate must be a non-empty string"),
        (WHOLE + "digest = 'md5'\n", "digest must be one of sha-256, sha-512"),
        (WHOLE + "links = 'keep'\n", "links must be one of skip, follow, preserve"),
        (WHOLE + "exclude = 'x'\n", "exclude must be a list of strings"),
        (WHOLE + "streams = 65\n", "streams must be a whole number from 1 to 64"),
        (WHOLE + "stall_timeout = '0s'\n", "stall_timeout must be a time above 0"),
        (WHOLE + "resume = 'yes'\n", "resume must be true or false"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, where: str, file: Path) -> None:
    assert where in refused(file, text)


def test_a_batch_has_to_say_what_is_done_where_a_name_is_taken(file: Path) -> None:
    message = refused(file, ITEM + "peer = 'nas'\n")
    assert 'item "a": conflict is missing: a batch says what is done where a name is taken' in message
    assert "rename, overwrite, skip, error" in message


def test_a_rate_may_be_a_number_of_bytes(file: Path) -> None:
    assert loaded(file, WHOLE + "limit_rate = 1_000\n").items[0].limit_rate == parse_schedule("1000")


def test_or_follow_the_time_of_the_day(file: Path) -> None:
    rates = ["08:00-18:00 20M", "100M"]
    assert loaded(file, WHOLE + f"limit_rate = {rates}\n").items[0].limit_rate == parse_schedule(rates)


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the batch .*nightly\.toml: No such file"):
        load_batch(file, ENV)


def test_every_key_of_the_defaults_is_one_of_an_item() -> None:
    assert set(ITEM_KEYS) - set(DEFAULT_KEYS) == {"name", "sources", "as"}
