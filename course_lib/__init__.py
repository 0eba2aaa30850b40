"""course_lib: a library that grows, day by day, into an inference engine; and the course's answer key."""

import os

__version__ = "0.1.0"

if os.environ.get("PARTS") == "mine":
    from course_lib import parts

    parts.install_substitution()
