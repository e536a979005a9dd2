"""Steps, which run on the compute node: build, squash, write the environment."""
