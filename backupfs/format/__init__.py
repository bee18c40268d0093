"""Byte layouts, as `docs/format.md` has them. Pure: nothing here does I/O, reads a clock or knows a key."""
