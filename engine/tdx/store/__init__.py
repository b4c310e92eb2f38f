"""Keeping partial and finished files on disk so that an interruption never costs more than it must."""
