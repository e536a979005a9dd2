"""Values to text, SVG, HTML and JSON, for commands and for the report."""
