"""What breaks on a cluster, made to happen on purpose: `python -m tests.faults`."""
