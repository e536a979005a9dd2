"""State of a checkout: input digests, records, image.json, the image store, locks."""
