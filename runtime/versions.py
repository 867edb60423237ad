"""What a weights version is to those who load it: files, and what must be found in them."""

from msgspec import Struct


class Base(Struct, frozen=True, kw_only=True):
    """Whole weights that later versions come on top of."""

    version: int
    path: str
    digest: str


class WeightsVersion(Struct, frozen=True, kw_only=True):
    """Published weights. `digest` is that of the trained weights, however they travel."""

    version: int
    path: str
    """The weights; or, with a base, what this version adds to the one before it."""
    digest: str
    base: Base | None = None
