"""What a run shows while it runs: lines in a file, a live display on a terminal."""
