"""In which order steps start, and how long they are expected to take."""
