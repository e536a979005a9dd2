"""Garbage collection for `doit gc`."""
