"""Words for numbers."""


def count(number: int, noun: str) -> str:
    """Returns "1 step", "3 steps", "2 trajectories": a number with its noun."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith('ss') else 's'}"
