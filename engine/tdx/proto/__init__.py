"""The protocol as pure functions and state machines: names, heads, fields; no input or output."""
