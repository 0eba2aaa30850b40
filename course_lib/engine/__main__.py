"""`python -m course_lib.engine`: one answer, or a chat."""

import os

# Threads that spin while they wait make torch many times slower as soon as something else wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from course_lib.engine.chat import app  # noqa: E402

if __name__ == "__main__":
    app(prog_name="python -m course_lib.engine")
