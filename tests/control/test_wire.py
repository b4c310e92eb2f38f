"""What is said of a connection that failed."""

from __future__ import annotations

import ssl

import pytest

from tdx.control.wire import failure
from tdx.errors import Forbidden


def refused(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


@pytest.mark.parametrize(
    ("code", "message"), [(9, "certificate is not yet valid"), (10, "certificate has expired")]
)
def test_a_certificate_that_the_clock_makes_invalid_is_about_the_clock(code: int, message: str) -> None:
    said = failure(refused(code, message), "nas")
    assert isinstance(said, Forbidden)
    assert said.message.startswith("the clock of this machine says ")
    assert "was not paired" not in said.message


def test_a_key_that_was_not_paired_is_about_the_key() -> None:
    said = failure(refused(18, "self-signed certificate"), "nas")
    assert isinstance(said, Forbidden)
    assert said.message == "nas shows a key that was not paired with this device: self-signed certificate"
