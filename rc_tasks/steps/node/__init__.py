"""Node of a step: private directories, limits, podman's storage."""
