"""Public names that are imported when they are first used, so that importing a package stays light (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy(package: str, homes: Mapping[str, str | None]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`; its `__all__` is what `dir` lists.
        homes: public name -> the module that defines it; None: it is itself a module of the package.

    Returns:
        To be bound as `__getattr__, __dir__ = lazy(__name__, homes)`.
    """

    class Package(ModuleType):
        """`probgram.solve` is a module and a function of it: the function wins, whichever is imported first."""

        def __setattr__(self, name: str, value: Any) -> None:
            # The import system binds submodules here.
            if not (homes.get(name) is not None and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

    sys.modules[package].__class__ = Package

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        value = import_module(f"{package}.{name}") if home is None else getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted(sys.modules[package].__all__)  # for completion, imported or not

    return get, names
