"""Names that a package offers without importing their modules before they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A module-level `__getattr__` (PEP 562) that finds each name in its module at first use.

    Rooms of the library hold NumPy parts and torch parts side by side; this way a lesson that needs only
    NumPy never waits for torch.
    """
    home = {name: module for module, names in modules.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    return __getattr__
