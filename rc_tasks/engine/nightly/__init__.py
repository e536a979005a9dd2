"""The nightly batch job and its summary."""
