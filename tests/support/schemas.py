"""What commands and logs say, held against docs/schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "schema"

Schema = dict[str, Any]


@cache
def schemas() -> dict[str, Schema]:
    """Every schema, by the name of its file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def kinds(schema: Schema) -> dict[str, Schema]:
    """Those definitions of a schema that are lines of output, by their names."""
    names = [each["$ref"].removeprefix("#/$defs/") for each in schema["oneOf"]]
    return {name: schema["$defs"][name] for name in names}


@cache
def _validator(name: str, kind: str) -> Any:
    # There are no types of jsonschema's own: all that is known of it is said here.
    jsonschema, referencing = import_module("jsonschema"), import_module("referencing")
    found = schemas()
    resources = [(each["$id"], referencing.Resource.from_contents(each)) for each in found.values()]
    registry = referencing.Registry().with_resources(resources)
    part = {"$ref": f"{found[name]['$id']}#/$defs/{kind}"} if kind else found[name]
    return jsonschema.Draft202012Validator(part, registry=registry)


def check_schema(schema: Schema) -> None:
    """Raises where it is no JSON Schema 2020-12."""
    import_module("jsonschema").Draft202012Validator.check_schema(schema)


def accepts(name: str, line: object) -> bool:
    """Whether the schema allows this."""
    return bool(_validator(name, "").is_valid(line))


def explained(name: str, line: dict[str, Any]) -> str:
    """Why the schema does not allow ``line``; empty where it does."""
    if accepts(name, line):
        return ""
    why = [f"docs/schema/{name}.json does not have {json.dumps(line)}"]
    for kind, schema in kinds(schemas()[name]).items():
        known = schema["properties"].get("event", {})
        if line.get("event") in [known.get("const"), *known.get("enum", [])]:
            errors = _validator(name, kind).iter_errors(line)
            why += [f"  as {kind}: {error.json_path}: {error.message}" for error in errors]
    return "\n".join(why)


def conform(name: str, lines: Iterable[dict[str, Any]]) -> None:
    """AssertionError for the first line that the schema does not allow."""
    for line in lines:
        assert not (why := explained(name, line)), why


MOST: Final = 200
"""Lines of one output that are looked at, at its beginning and at its end."""


def check_output(arguments: Sequence[object], output: str) -> None:
    """The output of the command ``tdx ARGUMENTS``, if it has --json and a schema."""
    words = [str(each) for each in arguments]
    if "--json" not in words or not words or words[0] not in schemas():
        return
    lines = output.splitlines()
    shown = lines if len(lines) <= 2 * MOST else lines[:MOST] + lines[-MOST:]
    conform(words[0], map(json.loads, shown))
