"""`python -m course_lib.classroom`: see cli.py."""

from course_lib.classroom.cli import main

main()
