"""The transfer protocol as pure functions and state machines: names, heads, fields, messages; no I/O."""
