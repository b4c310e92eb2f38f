"""``Tdx-Stages``: a sender's seconds in each stage so far, a dictionary of decimals (RFC 9651)."""

from __future__ import annotations

import re
from typing import Final, cast

from tdx.model import Stages

FIELD: Final = "Tdx-Stages"

MOST_SECONDS: Final = 1e9

_LONGEST: Final = 1000
_MEMBER: Final = re.compile(r"[ \t]*([a-z*][a-z0-9_.*-]*)=([0-9]{1,12}(?:\.[0-9]{1,3})?)(?:;[^,]*)?[ \t]*")


def format_stages(stages: Stages) -> str:
    """The stages that took time, to a millisecond (as precise as a decimal there is); empty where none
    did."""
    told = ((stage, min(seconds, MOST_SECONDS)) for stage, seconds in stages.as_dict().items())
    return ", ".join(f"{stage}={seconds:.3f}" for stage, seconds in told if seconds >= 0.0005)


def parse_stages(value: str) -> Stages | None:
    """What of ``value`` makes sense; None where nothing does. It is told for information: whatever is no
    known stage, or no number of seconds, is passed over."""
    stages, known = Stages(), False
    for member in value[:_LONGEST].split(","):
        match = _MEMBER.fullmatch(member)
        if match is not None and match[1] in Stages.__slots__ and float(match[2]) <= MOST_SECONDS:
            setattr(stages, match[1], float(match[2]))
            known = True
    return stages if known else None


def stages_of(reported: object) -> Stages:
    """The stage seconds of a JSON object; what cannot be the time of a known stage is passed over."""
    stages = Stages()
    if isinstance(reported, dict):
        figures = cast("dict[str, object]", reported)
        for stage in Stages.__slots__:
            seconds = figures.get(stage)
            if isinstance(seconds, int | float) and 0 <= seconds <= MOST_SECONDS:
                setattr(stages, stage, float(seconds))
    return stages
