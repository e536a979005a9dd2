"""Containers that are started: with each launcher, and what a launcher needs in the image."""
