"""Format values as text, SVG, HTML and JSON, for commands and for the report."""
