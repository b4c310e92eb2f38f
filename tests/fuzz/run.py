"""Fuzzes one target, guided by coverage: ``python -m fuzz.run TARGET FOLDER [OPTION OF LIBFUZZER]...``.

FOLDER gets what libFuzzer found worth keeping, and its findings. A finding is printed as a Python literal,
for a test.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(name: str, folder: Path, options: list[str]) -> None:
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["tdx"]):
        table = importlib.import_module("fuzz.table")
    target = {**table.TARGETS, "canary": table.CANARY}[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [f"-max_len={target.longest}", f"-artifact_prefix={folder}/", *options]
    if target.tokens:
        words = folder / "tokens"
        words.write_text(
            "".join('"' + "".join(f"\\x{c:02x}" for c in token) + '"\n' for token in target.tokens)
        )
        arguments.append(f"-dict={words}")
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], told(target.run))
    atheris.Fuzz()


def told(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """``run``, which says what it was given when that is too much for it."""

    def one(data: bytes) -> None:
        try:
            run(data)
        except BaseException:
            sys.stderr.write(f"\nFOUND: {data!r}\n")
            raise

    return one


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
