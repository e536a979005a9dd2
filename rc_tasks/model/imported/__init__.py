"""Bake and compose files of other build tools, read as recipes for project.toml files."""
