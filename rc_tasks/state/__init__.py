"""What has been built: input digests, records, image.json, the image store, locks."""
