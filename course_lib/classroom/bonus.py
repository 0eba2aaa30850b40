"""What a bonus notebook calls first: is the package there that it is about?"""

from importlib import import_module


class Skipped(Exception):
    """Ends a run of all cells. A notebook shows the reason and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def needs(package: str) -> None:
    """Go on if `package` can be imported; otherwise say how to get it, and stop the notebook here.

    Raises:
        Skipped: the package is missing or does not load. JupyterLab then runs none of the cells that wait.
    """
    try:
        import_module(package)
    except ImportError as problem:
        raise Skipped(
            f"skipped: this notebook needs {package}, which does not load here ({problem}).\n"
            "Nothing else in the course needs it. To install it, at the version that was tested:\n"
            f"    .venv/bin/python -m pip install -c .setup/constraints.txt {package}"
        ) from None
