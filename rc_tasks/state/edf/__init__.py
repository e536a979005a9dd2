"""EDFs: the values of env.toml files, and the images that EDFs name."""
