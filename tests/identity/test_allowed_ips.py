from __future__ import annotations

import base64
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.identity.allowed_ips import (
    Address,
    AllowedIps,
    Network,
    address_of,
    is_single,
    parse_allowed_ips,
    parse_handshakes,
)

KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(3)]

# Few bits vary, so that networks often hold each other and the addresses.
ADDRESSES = st.one_of(
    st.integers(0, 255).map(lambda low: ip_address(0x0A090000 | low)),
    st.integers(0, 255).map(lambda low: ip_address(0xFD09 << 112 | low)),
)
NETWORKS = st.builds(
    lambda address, host_bits: ip_network((address, address.max_prefixlen - host_bits), strict=False),
    ADDRESSES,
    st.one_of(st.integers(0, 8), st.just(32)),
)


@given(st.lists(st.tuples(st.sampled_from(KEYS), NETWORKS)), ADDRESSES)
def test_the_longest_network_that_holds_the_address_is_found_with_all_its_keys(
    claims: list[tuple[str, Network]], address: Address
) -> None:
    found = AllowedIps(claims).find(address)
    holding = [network for _, network in claims if address in network]
    if not holding:
        assert found is None
    else:
        longest = max(holding, key=lambda network: network.prefixlen)
        assert found is not None
        assert found.network == longest
        assert found.keys == {key for key, network in claims if network == longest}


def test_only_a_whole_prefix_is_a_single_address() -> None:
    assert is_single(ip_network("10.9.0.2/32"))
    assert is_single(ip_network("fd09::2/128"))
    assert not is_single(ip_network("10.9.0.2/31"))
    assert not is_single(ip_network("fd09::/32"))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.9.0.2", "10.9.0.2"),
        ("::ffff:10.9.0.2", "10.9.0.2"),
        ("fe80::2%wg0", "fe80::2"),
        ("fd09:0::2", "fd09::2"),
    ],
)
def test_an_address_has_one_form(host: str, address: str) -> None:
    assert address_of(host) == ip_address(address)


@pytest.mark.parametrize("host", ["", "laptop", "10.9.0", "10.9.0.2/32", "010.9.0.2 "])
def test_what_is_no_address_has_no_form(host: str) -> None:
    assert address_of(host) is None


def test_what_wg_prints_is_read() -> None:
    printed = f"{KEYS[0]}\t10.9.0.2/32 fd09::2/128\n{KEYS[1]}\t(none)\n{KEYS[2]}\t0.0.0.0/0\n"
    assert parse_allowed_ips(printed) == {
        KEYS[0]: (ip_network("10.9.0.2/32"), ip_network("fd09::2/128")),
        KEYS[1]: (),
        KEYS[2]: (ip_network("0.0.0.0/0"),),
    }
    assert parse_allowed_ips("") == {}
    assert parse_handshakes(f"{KEYS[0]}\t1700000000\n{KEYS[1]}\t0\n") == {KEYS[0]: 1700000000, KEYS[1]: 0}


@pytest.mark.parametrize(
    "printed",
    [
        "garbage",
        "\n",
        f"{KEYS[0]} 10.9.0.2/32",
        f"{KEYS[0]}\t",
        f"{KEYS[0]}\t10.9.0.2/33",
        f"{KEYS[0]}\t10.9.0.2/24",
        f"{KEYS[0]}\t10.9.0.2/32  10.9.0.3/32",
        f"wg0\t{KEYS[0]}\t10.9.0.2/32",
        f"{KEYS[0][:-4]}\t10.9.0.2/32",
        "schlüssel\t10.9.0.2/32",
    ],
)
def test_what_wg_never_prints_is_not_believed(printed: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_allowed_ips(printed)
    with pytest.raises(ValueError, match=r"."):
        parse_handshakes(printed)
