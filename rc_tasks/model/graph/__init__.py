"""Projects, their build contexts, and the graph of images that are built on one another."""
