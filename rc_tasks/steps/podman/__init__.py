"""The podman step: pulls or brings the bases, builds the image, puts it into the store."""
