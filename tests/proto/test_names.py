from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import BadName
from tdx.proto.names import MAX_NAME, check_name, decode_name, encode_name, numbered

part_characters = st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/")
parts = st.text(part_characters, min_size=1, max_size=60).filter(
    lambda part: part not in (".", "..") and part.casefold() != ".tdx"
)
names = st.lists(parts, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "disk image.img",
        "100%.txt",
        "🎉",
        "Ünïcödé/файл/文件",
        "...",
        ".hidden",
        "-rf",
        "~",
        "a\\b",
        "C:\\x",
        ".tdx2",
        "tdx",
        "x.tdx",
        "a/b/c",
        "n" * 255,
        "é" * 127,
        " ",
        "a\u200bb",
    ],
)
def test_an_ordinary_name_is_kept_as_it_is(name: str) -> None:
    assert check_name(name) == name
    assert decode_name(encode_name(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "//a",
        "a//b",
        "a/",
        ".",
        "..",
        "../a",
        "a/..",
        "a/../b",
        "a/./b",
        "a\x00b",
        "a\nb",
        "a\x1b[2Jb",
        "a\x7fb",
        "a\x85b",
        "a\x9bb",
        "a\ud800b",
        "\udcff",
        ".tdx",
        ".TDX",
        ".tdX/a",
        "a/.Tdx",
        "n" * 256,
        "é" * 128,
        "a/" + "n" * 300 + "/b",
        "/".join(["n" * 255] * 17),
    ],
)
def test_a_name_that_could_escape_hide_or_deceive_is_refused(name: str) -> None:
    with pytest.raises(BadName):
        check_name(name)


def test_a_whole_name_has_a_longest() -> None:
    longest = "/".join(["n" * 255] * 16)
    assert len(longest) == MAX_NAME - 1
    assert check_name(longest) == longest
    assert check_name("/".join(["n" * 127] * 32) + "n") == "/".join(["n" * 127] * 32) + "n"
    with pytest.raises(BadName, match="longer than 4096"):
        check_name("/".join(["n" * 127] * 32) + "nn")


@given(names)
def test_a_name_comes_out_of_a_target_as_it_went_in(name: str) -> None:
    assert decode_name(encode_name(name)) == check_name(name)


@given(names)
def test_an_encoded_name_needs_no_further_quoting(name: str) -> None:
    encoded = encode_name(name)
    assert encoded.isascii()
    assert not set(encoded) & set(" ?#\\\"'<>")
    assert encoded.count("/") == name.count("/")


@given(st.text(max_size=40))
def test_whatever_is_decoded_has_been_checked(escaped: str) -> None:
    try:
        name = decode_name(escaped)
    except BadName:
        return
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("escaped", "name"),
    [("a%20b", "a b"), ("%C3%BC", "ü"), ("%c3%bc", "ü"), ("a+b", "a+b"), ("%2541", "%41")],
)
def test_escapes_are_undone_once(escaped: str, name: str) -> None:
    assert decode_name(escaped) == name


@pytest.mark.parametrize(
    "escaped",
    [
        "",
        "%",
        "a%",
        "a%2",
        "a%zz",
        "a%+1",
        "a% 1",
        "a b",
        "a\tb",
        "ü",
        "a?b",
        "a#b",
        "a%2Fb",
        "a%2fb",
        "..%2Fa",
        "%2e%2e/a",
        "%2E",
        "a/%2e%2e/b",
        "%2etdx/a",
        "%00",
        "a%0Ab",
        "%C2%85",
        "%FF",
        "%C3",
        "%C0%AE%C0%AE/a",
        "%ED%A0%80",
        "/a",
        "a//b",
    ],
)
def test_an_escaped_name_that_is_malformed_or_bad_is_refused(escaped: str) -> None:
    with pytest.raises(BadName):
        decode_name(escaped)


@pytest.mark.parametrize(
    ("component", "second"),
    [
        ("name", "name (2)"),
        ("name.ext", "name (2).ext"),
        ("a.b.c", "a.b (2).c"),
        ("disk.tar.gz", "disk (2).tar.gz"),
        ("disk.TAR.zst", "disk (2).TAR.zst"),
        ("guitar.gz", "guitar (2).gz"),
        (".tar.gz", ".tar (2).gz"),
        ("x.tar", "x (2).tar"),
        (".bashrc", ".bashrc (2)"),
        (".bashrc.bak", ".bashrc (2).bak"),
        ("..x", "..x (2)"),
        ("...", "... (2)"),
        ("name.", "name (2)."),
        ("name (1).ext", "name (1) (2).ext"),
        ("a." + "x" * 200, "a." + "x" * 200 + " (2)"),
        ("n" * 255, "n" * 251 + " (2)"),
        ("n" * 251 + ".ext", "n" * 247 + " (2).ext"),
        ("é" * 127, "é" * 125 + " (2)"),
        ("a" + "🎉" * 63, "a" + "🎉" * 62 + " (2)"),
    ],
)
def test_a_number_goes_before_the_extension(component: str, second: str) -> None:
    assert numbered(component, 2) == second


def fits(part: str) -> bool:
    return len(part.encode()) <= 255


@given(
    st.one_of(
        parts,
        st.tuples(
            st.text(part_characters, min_size=1, max_size=255), st.sampled_from(["", ".a", ".tar.gz"])
        ).map("".join),
        st.tuples(st.integers(1, 251), st.integers(1, 253)).map(lambda n: "n" * n[0] + "." + "x" * n[1]),
    ).filter(lambda part: fits(part) and part not in (".", "..")),
    st.lists(st.one_of(st.integers(1, 12), st.integers(1, 10**18)), min_size=2, max_size=2, unique=True),
)
def test_numbered_names_are_valid_and_distinct(component: str, numbers: list[int]) -> None:
    first, second = (numbered(component, n) for n in numbers)
    assert first != second
    for name in (first, second):
        assert name != component
        assert check_name(name) == name
        assert "/" not in name
