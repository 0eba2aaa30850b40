"""A part that is a method is found in the library, also where a notebook has put its own in the place."""

from course_lib.classroom import sources
from course_lib.engine.scheduler import Scheduler


def test_a_method_from_a_notebook_hides_no_part(monkeypatch):
    def schedule(self):
        raise NotImplementedError

    schedule.__module__ = "__main__"
    monkeypatch.setattr(Scheduler, "schedule", schedule)
    located = sources.locate("engine.Scheduler.schedule")
    assert located.key == "course_lib.engine.scheduler:Scheduler.schedule"
