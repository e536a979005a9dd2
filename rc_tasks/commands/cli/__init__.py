"""Code that commands share: arguments, errors, help, shell completion, interactive jobs."""
