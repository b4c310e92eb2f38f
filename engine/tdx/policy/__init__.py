"""Decisions that need no input or output: what to send next, how many streams, when to try again."""
