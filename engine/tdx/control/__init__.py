"""The orchestration: the only part that knows an event loop."""
