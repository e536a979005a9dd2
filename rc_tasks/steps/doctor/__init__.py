"""What `doit doctor` checks on a node."""
