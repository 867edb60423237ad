"""A registry of kinds by the class of their settings: a new kind is one file, and no other file changes.

    ADAPTERS: Registry[Callable[[Any], Adapter]] = Registry("policies.adapters")

    ADAPTERS.add(schema.Lora, LoraAdapter)      # at the end of policies/adapters/lora.py
    ADAPTERS.of(settings.model.train)           # LoraAdapter

The files of the package are imported at the first look-up, so that creating a registry costs nothing.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Generic, TypeVar

Kind = TypeVar("Kind")


class Registry(Generic[Kind]):
    """The kinds that the files of one package register."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._kinds: dict[type, Kind] = {}
        self._complete = False

    def add(self, settings: type, kind: Kind) -> None:
        """Adds a kind under the class of its settings. Raises ValueError if another has that class."""
        if self._kinds.setdefault(settings, kind) is not kind:
            raise ValueError(f"{self._package}: two kinds for {settings.__name__}")

    @contextlib.contextmanager
    def temporarily(self, settings: type, kind: Kind) -> Iterator[None]:
        """Has the kind added within the block, and forgotten behind it. Raises ValueError as `add` does."""
        if settings in self._kinds:
            raise ValueError(f"{self._package}: two kinds for {settings.__name__}")
        self._kinds[settings] = kind
        try:
            yield
        finally:
            del self._kinds[settings]

    def of(self, settings: object) -> Kind:
        """Returns the kind for these settings. Raises LookupError if no file of the package adds one."""
        self._import_all()
        try:
            return self._kinds[type(settings)]
        except KeyError:
            known = ", ".join(sorted(kind.__name__ for kind in self._kinds))
            raise LookupError(
                f"{self._package}: no file there adds {type(settings).__name__}, only {known}"
            ) from None

    def _import_all(self) -> None:
        if self._complete:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._complete = True
