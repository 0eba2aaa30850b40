"""`python -m course_lib.engine`: one answer, or a chat."""

import course_lib.engine.startup  # noqa: F401  # before torch: how its threads wait is read when it loads

# isort: split
from course_lib.engine.chat import app

if __name__ == "__main__":
    app(prog_name="python -m course_lib.engine")
