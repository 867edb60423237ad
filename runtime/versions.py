"""A weights version as weight loaders get it: files, and the digest of the weights in them."""

from msgspec import Struct


class Base(Struct, frozen=True, kw_only=True):
    """Whole weights, to which later versions are added."""

    version: int
    path: str
    digest: str


class WeightsVersion(Struct, frozen=True, kw_only=True):
    """Published weights. `digest` is that of the trained weights, in whatever form they are published."""

    version: int
    path: str
    """File of the whole weights; or, with a base, of the terms that this version adds to the previous one."""
    digest: str
    base: Base | None = None
