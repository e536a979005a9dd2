"""Compare published images with clean builds: random graphs, random edits, emptied and mixed nodes."""
