"""doit: task groups, up-to-date objects, state backend, reporter, running steps."""
