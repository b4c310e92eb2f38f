"""The transfer protocol as pure functions and state machines: names, heads, fields and messages; no input or output."""
