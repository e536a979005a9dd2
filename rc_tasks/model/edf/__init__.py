"""EDF files: their keys, what they extend, how ours merges with what a user has edited."""
