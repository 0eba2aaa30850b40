"""Counting lines of code: what counts, and that no file is left out."""

from checks.lines import LIBRARY, code_lines, rooms

SOURCE = '''"""A module."""

import os  # a comment behind code does not take its line away

# a comment of its own


class Thing:
    """One line
    and another."""

    text = """this is
code"""

    def call(
        self,
    ):
        "also a docstring"
        return os.name
'''


def test_what_counts_is_code():
    assert code_lines(SOURCE) == 8  # import, class, text (2), def (3), return
    assert code_lines('"""Only words."""\n\n# and more\n') == 0


def test_every_room_is_counted():
    assert set(rooms()) >= {path.name for path in LIBRARY.iterdir() if (path / "__init__.py").exists()} - {
        "mine"
    }
    assert all(count > 0 for count in rooms().values())
