"""Checks of whole numbers."""

__all__ = ["check_count"]


def check_count(name: str, value: int, *, low: int = 1, high: int | None = None) -> None:
    """Require a whole number of at least ``low`` and at most ``high``.

    Args:
        name: What the caller calls the number.
        value: The number.
        low: Smallest value.
        high: Largest value, or ``None``.

    Raises:
        ValueError: If the number lies outside.
    """
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name} must be at least {low}{upper}, got {value}")
