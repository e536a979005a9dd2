"""The tasks, the database and the reporter that doit is given, and the selection of tasks."""
