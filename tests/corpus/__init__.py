"""Read other people's Dockerfiles, and compare what we make of them with Go and podman."""
