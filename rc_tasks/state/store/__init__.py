"""The store of images and layers, and earlier images that are kept."""
