"""What runs on the compute node: build, squash, write the environment."""
