"""The algorithms, one file each, behind the protocol in `protocol`; found by their settings.

A file here belongs to the settings of the same name in `configs/algorithms` and is found by being here. An
algorithm from elsewhere, such as a test's, is added by `register`, with its settings beside it.
"""

import importlib
import pkgutil
from collections.abc import Callable

from configs.algorithm import AlgorithmSettings
from configs.schema import Settings
from policies.algorithms.protocol import Algorithm

_REGISTERED: dict[type[AlgorithmSettings], type[Algorithm]] = {}


def register(
    settings: type[AlgorithmSettings],
) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Makes a class the algorithm of these settings; a class decorator."""

    def registered(algorithm: type[Algorithm]) -> type[Algorithm]:
        _REGISTERED[settings] = algorithm
        return algorithm

    return registered


def open_algorithm(settings: Settings) -> Algorithm:
    """Returns the algorithm of a run. Raises LookupError for settings that no file stands behind."""
    kind = type(settings.algorithm)
    if kind not in _REGISTERED:
        for module in pkgutil.iter_modules(__path__):
            importlib.import_module(f"{__name__}.{module.name}")
    if kind not in _REGISTERED:
        raise LookupError(f"no file of policies/algorithms registers itself for {kind.__name__}")
    return _REGISTERED[kind](settings)
