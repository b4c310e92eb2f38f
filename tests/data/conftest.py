from __future__ import annotations

import pytest

from support.datakit import OVER, Over


@pytest.fixture(params=sorted(OVER))
def over(request: pytest.FixtureRequest) -> Over:
    """What holds over plain sockets holds over TLS."""
    return OVER[str(request.param)]
