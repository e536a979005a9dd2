"""Progress of a run: lines in a file, a live display on a terminal."""
