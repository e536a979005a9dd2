"""Runs the steps: allocations, slots, retries, adoption from the official checkout."""
