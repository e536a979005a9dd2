"""The enroot and env steps: squash, check and smoke-test the image, write env.toml."""
