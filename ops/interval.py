"""How sure a measured share is, in print: never ± 0.000, which no finite number of prompts can tell."""

import math

Z95 = 1.96
SMALLEST = 0.0005
"""A standard error below this would be printed as 0.000."""


def share_text(share: float, stderr: float, n: int) -> str:
    """Returns a share with its standard error, or with Wilson's interval where all prompts came out alike."""
    if stderr >= SMALLEST or n < 1:
        return f"{share:.3f} ± {stderr:.3f}" if n else f"{share:.3f}"
    low, high = wilson(share, n)
    return f"{share:.3f} (95 % interval {low:.3f} to {high:.3f})"


def wilson(share: float, n: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval (1927) of a share among `n`, which has a width at 0 and 1, too."""
    square = Z95**2
    middle = share + square / (2 * n)
    reach = Z95 * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    total = 1 + square / n
    return max((middle - reach) / total, 0.0), min((middle + reach) / total, 1.0)
