"""How tokens are sampled: the numbers that a decoder and an endpoint are both given. It imports no MLX."""

from msgspec import Struct


class Sampling(Struct, frozen=True, kw_only=True):
    """What is sampled from, and for how long."""

    temperature: float = 1.0
    max_new_tokens: int = 64
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
