"""Published images: their manifests, their check, and what refers to them."""
