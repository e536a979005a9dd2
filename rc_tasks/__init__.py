"""The make for HPC container images. CONTRIBUTING.md shows the rooms of this house."""
