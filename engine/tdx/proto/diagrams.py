"""State diagrams, drawn from the transition tables so that they cannot disagree with them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar

from tdx.proto.receiver import UPLOAD_TABLE, UploadState
from tdx.proto.sender import PUSH_TABLE, PushState

State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)

_DOCUMENT: Final = """\
# States

Drawn from the transition tables in `tdx.proto.receiver` and `tdx.proto.sender`; a test compares the page with
them. To write it anew:

    python -c 'from tdx.proto.diagrams import document; print(document(), end="")' > docs/states.md

## An upload, at the receiver

```mermaid
{upload}
```

## A push, at the sender

```mermaid
{push}
```
"""


def diagram(table: Mapping[tuple[State, Event], State], initial: State) -> str:
    """A mermaid ``stateDiagram-v2``. Events between the same two states share an arrow;
    a state that no event leaves is final."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, event), following in table.items():
        arrows.setdefault((state, following), []).append(event.value)
    outgoing = {state for state, following in arrows if state is not following}
    lines = ["stateDiagram-v2", f"    [*] --> {initial.value}"]
    lines += [f"    {a.value} --> {b.value}: {', '.join(events)}" for (a, b), events in arrows.items()]
    finals = sorted({following.value for _, following in arrows if following not in outgoing})
    lines += [f"    {final} --> [*]" for final in finals]
    return "\n".join(lines)


def document() -> str:
    """The whole of ``docs/states.md``."""
    return _DOCUMENT.format(
        upload=diagram(UPLOAD_TABLE, UploadState.OPEN), push=diagram(PUSH_TABLE, PushState.NEW)
    )
