"""Decisions as plain functions on plain values: no I/O, no clock, no loop."""
