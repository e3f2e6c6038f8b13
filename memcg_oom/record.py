"""What events, victims and identities are: immutable, and equal by value.

Written out rather than made by the dataclasses module, whose import alone takes longer than that of the whole package.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from typing_extensions import Self


class Record:
    """What is immutable, and equal to another when both are of one class and all their fields are equal."""

    __slots__ = ()

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """The names of all fields, the base's first."""
        return tuple(name for base in reversed(cls.__mro__) for name in base.__dict__.get("__slots__", ()))

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.fields())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __replace__(self, **changes: object) -> Self:
        """The same but for some fields, as copy.replace() has it from Python 3.13 on."""
        return type(self)(**{name: getattr(self, name) for name in self.fields()} | changes)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.fields())})"
