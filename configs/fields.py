"""The kinds of value that settings are made of."""

from typing import Annotated

from msgspec import Meta, Struct

MOST = 2**24
"""Largest value of a setting that counts rows, tokens or files, so that a typing error cannot fill memory."""


def up_to(most: int, least: int = 1) -> Meta:
    """Returns the bounds of a setting that counts something."""
    return Meta(ge=least, le=most)


Count = Annotated[int, up_to(MOST)]
Whole = Annotated[int, up_to(MOST, 0)]
Positive = Annotated[float, Meta(gt=0)]
Temperature = Annotated[float, Meta(ge=0.01, le=100)]
"""Logits are divided by it in float32: far below, one token has all the probability, and that of the others
is lost; 0, where it is allowed, takes the likeliest token.
"""
NotNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Seconds = Annotated[float, Meta(gt=0, le=1e7)]
Text = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Closed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all settings records: frozen, keyword-only, and without unknown keys."""
