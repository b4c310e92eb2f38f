"""The version, as a literal: the build reads it here, and importlib.metadata would cost every start-up."""

from __future__ import annotations

VERSION = "0.1.0"
