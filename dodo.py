"""`doit list` shows the images, `doit build:NAME` builds one, `doit help` shows all commands."""

from rc_tasks.engine import ContentChecker, Reporter, task_images  # noqa: F401 - doit looks for task_ names here

DOIT_CONFIG = {
    "default_tasks": ["build"],
    "backend": "rc_tasks",  # our records; doit's own databases are written only at exit
    "dep_file": ".rc/state",
    "check_file_uptodate": ContentChecker,  # content and mode, never time stamps
    "reporter": Reporter,
    "par_type": "thread",  # a step is a process of its own already
}
