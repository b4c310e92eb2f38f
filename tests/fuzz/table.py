"""Every target of the fuzzers, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fuzz import answers, bundles, configured, framing, identities, journals, sealed, trees, values
from fuzz.target import Target

TARGETS: Final[Mapping[str, Target]] = {
    **framing.TARGETS,
    **values.TARGETS,
    **bundles.TARGETS,
    **answers.TARGETS,
    **journals.TARGETS,
    **configured.TARGETS,
    **identities.TARGETS,
    **sealed.TARGETS,
    **trees.TARGETS,
}


def _dies(data: bytes) -> None:
    assert b"mine" not in data


CANARY: Final = Target(_dies, lambda: [b"canary in a"], [b"mine"])
"""By which the tests see that findings are found."""
