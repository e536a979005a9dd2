"""What the commands share: arguments, errors, doit's own commands, interactive jobs."""
