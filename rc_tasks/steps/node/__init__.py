"""What a step needs of its node: private directories, limits, podman's storage."""
