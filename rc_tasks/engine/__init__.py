"""doit: task groups, up-to-date objects, state backend, reporter, running steps."""

from rc_tasks.engine.backend import ContentChecker
from rc_tasks.engine.doit.reporter import Reporter
from rc_tasks.engine.doit.tasks import task_images

__all__ = ["ContentChecker", "Reporter", "task_images"]
