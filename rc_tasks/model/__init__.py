"""Values: image references, Dockerfiles, projects and their paths, the image graph, EDFs, settings."""
