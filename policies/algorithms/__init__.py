"""The algorithms, one file each, behind the protocol in `protocol`; found by their settings.

A file here belongs to the settings of the same name in `configs/algorithms` and is found by being here. An
algorithm from elsewhere is added by `register`; a test adds its own by `ALGORITHMS.temporarily`.
"""

from collections.abc import Callable

from configs.algorithm import AlgorithmSettings
from configs.schema import Settings
from policies.algorithms.protocol import Algorithm
from runtime.registry import Registry

ALGORITHMS: Registry[type[Algorithm]] = Registry("policies.algorithms")


def register(
    settings: type[AlgorithmSettings],
) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Makes a class the algorithm of these settings; a class decorator. Raises ValueError for a second."""

    def registered(algorithm: type[Algorithm]) -> type[Algorithm]:
        ALGORITHMS.add(settings, algorithm)
        return algorithm

    return registered


def open_algorithm(settings: Settings) -> Algorithm:
    """Returns the algorithm of a run. Raises LookupError for settings that no file adds one for."""
    return ALGORITHMS.of(settings.algorithm)(settings)
