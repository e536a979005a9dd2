"""Adoption: the images that a clone takes from the official checkout, and whose files it trusts."""
