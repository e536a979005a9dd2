"""What is written into env.toml files, and which of them name which image."""
