"""A base that lets properties of modules raise their own AttributeError."""

from __future__ import annotations

from typing import Any


class OwnErrors:
    """Stands before `nn.Module` among the bases of a class with properties.

    Python asks `__getattr__` also where a property has raised an AttributeError, and the one of `nn.Module` would say
    that the module has no such property. Here the property is asked once more, so that what it raises is what is seen.
    """

    def __getattr__(self, name: str) -> Any:
        """Return a submodule, parameter or buffer."""
        found = getattr(type(self), name, None)
        if isinstance(found, property):
            return found.__get__(self)
        return super().__getattr__(name)  # type: ignore[misc]
