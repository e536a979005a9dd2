"""What `doit gc` removes."""
