"""Checks of a node for `doit doctor`."""
