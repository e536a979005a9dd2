"""Saving of images in the store: their layers, squashed, and what names them."""
