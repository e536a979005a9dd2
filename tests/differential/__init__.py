"""What is published, compared with clean builds: random graphs, random edits, emptied and mixed nodes."""
