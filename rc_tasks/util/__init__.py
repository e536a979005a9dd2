"""What knows nothing of images: TOML and its schemas, templates, text, careful reading of files."""
