"""One look for every figure of the book.

The colors are those of Okabe and Ito, which readers with any common form of color blindness can
tell apart (M. Okabe and K. Ito, Color Universal Design, 2008, https://jfly.uni-koeln.de/color/).
Figures are opaque and light, like a card, so that one picture reads on a light and a dark page.
"""

from typing import Any

__all__ = ["COLORS", "INK", "size", "style"]

#: Blue, vermillion, green, purple, orange, sky, and black, in the order in which they are used.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1A1A1A")

#: The color of text and axes.
INK = "#1A1A1A"


def size(width: float = 1.0, ratio: float = 0.56) -> tuple[float, float]:
    """Return a figure size in inches.

    Args:
        width: Fraction of the text width of a page, in (0, 1].
        ratio: Height over width, above 0.

    Returns:
        Width and height.

    Example:
        >>> size(1.0, 0.5)
        (6.4, 3.2)
    """
    if not (0 < width <= 1 and ratio > 0):
        raise ValueError(f"need 0 < width <= 1 and ratio > 0, got {width} and {ratio}")
    return (6.4 * width, 6.4 * width * ratio)


def style() -> None:
    """Apply the book's style to every Matplotlib figure that follows.

    Example:
        >>> style()
    """
    import matplotlib.style
    from cycler import cycler

    settings: dict[str, Any] = {
        "figure.figsize": size(),
        "figure.dpi": 120,
        "savefig.dpi": 160,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "savefig.bbox": "tight",
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.labelsize": 11,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.fontsize": 10,
        "axes.prop_cycle": cycler(color=COLORS),
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E3E3E3",
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "legend.frameon": False,
        "image.cmap": "cividis",
    }
    matplotlib.style.use(settings)
