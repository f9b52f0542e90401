"""Checks of whole numbers."""

__all__ = ["check_integer"]


def check_integer(name: str, value: int, *, low: int, high: int | None = None) -> None:
    """Require a whole number of at least ``low`` and, where given, at most ``high``."""
    if value < low or (high is not None and value > high):
        wanted = f"{low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
