"""Bases from registries, and the digests that they are pinned to."""
