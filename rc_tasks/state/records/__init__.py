"""Records of steps, digests of their inputs, and the causes for a step to run."""
