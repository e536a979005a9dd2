"""Dockerfiles: their instructions and stages, and the form in which podman is given them."""
