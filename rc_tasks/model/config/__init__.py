"""Settings and project.toml: what users may write there, and where each value came from."""
