"""One look for every figure of the book, and one way to draw it for screens of any size.

The colors are those of Okabe and Ito, which readers with any common form of color blindness can
tell apart (M. Okabe and K. Ito, Color Universal Design, 2008, https://jfly.uni-koeln.de/color/).
A notebook shows pictures of twice the resolution, opaque and light. The book takes the drawing
itself, as SVG whose text is text, and recolors it by the page's theme; on a phone it sets panels
that stand side by side one below the other.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["COLORS", "INK", "PHONE", "size", "style", "svg"]

#: Blue, vermillion, green, purple, orange, sky, and black, in the order in which they are used.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1A1A1A")

#: The color of text and axes.
INK = "#1A1A1A"

#: The widest panel, as a fraction of the text width, whose labels are still legible on a phone.
PHONE = 0.8

# Drawings of more characters than this are shown as pictures.
HEAVY = 120_000


def size(width: float = 1.0, ratio: float = 0.56) -> tuple[float, float]:
    """Return a figure size in inches.

    A figure of one panel is at most ``PHONE`` wide. The panels of a wider one stand side by side,
    and the book sets them one below the other where the page is narrow.

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

    In a notebook, figures are shown as pictures of twice the resolution; where the environment
    variable ``COMPANION_FIGURES`` is ``svg``, as in the book's build, also as ``svg`` draws them.

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
        "savefig.pad_inches": 0.04,
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.labelsize": 11,
        "xtick.labelsize": 10.5,
        "ytick.labelsize": 10.5,
        "legend.fontsize": 10.5,
        "legend.title_fontsize": 10.5,
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
        "svg.fonttype": "none",
        "svg.hashsalt": "companion",  # the same drawing, the same names of its parts
    }
    matplotlib.style.use(settings)
    _show_in_notebooks()


def _show_in_notebooks() -> None:
    """Tell IPython, where it runs and draws figures inline, how to show them."""
    try:
        from IPython.core.getipython import get_ipython
        from IPython.core.pylabtools import retina_figure
    except ImportError:
        return
    import matplotlib
    from matplotlib.figure import Figure

    shell: Any = get_ipython()
    backend = matplotlib.get_backend()
    if shell is None or "inline" not in backend:
        return
    import matplotlib.pyplot as plt

    plt.switch_backend(backend)  # it would set its own formats when it is first used
    formatters = shell.display_formatter.formatters
    formatters["image/png"].for_type(Figure, lambda figure: retina_figure(figure, base64=True))  # type: ignore[no-untyped-call]
    if os.environ.get("COMPANION_FIGURES") == "svg":
        formatters["image/svg+xml"].for_type(Figure, svg)


def _panels(figure: Any, renderer: Any) -> list[tuple[list[Any], Any]]:
    """Group what stands on a figure into panels: artists, and the box in inches around them.

    Axes that overlap are one panel, and so are a color bar and its picture. A figure with a title
    or with labels of its own is a single panel.
    """
    from matplotlib.transforms import Bbox

    def box(artist: Any) -> Any:
        found = artist.get_tightbbox(renderer)
        return Bbox(found.get_points() / figure.dpi)

    shared = [*figure.texts, *figure.lines, *figure.patches, *figure.images, *figure.artists]
    if any(artist.get_visible() for artist in shared):
        drawn = [*figure.axes, *figure.legends]
        return [(drawn, Bbox.union([box(artist) for artist in drawn]))]
    groups = [([ax], box(ax)) for ax in figure.axes if ax.get_visible()]
    groups += [([legend], box(legend)) for legend in figure.legends]

    def belong(one: tuple[list[Any], Any], other: tuple[list[Any], Any]) -> bool:
        bars = [bar for ax in one[0] if (bar := getattr(ax, "_colorbar", None))]
        owners = [ax for bar in bars for ax in (bar.mappable.axes,)]
        of_a_bar = set(map(id, owners)) & set(map(id, other[0]))
        return bool(of_a_bar or one[1].overlaps(other[1]))

    merged = True
    while merged:
        merged = False
        for i, one in enumerate(groups):
            for j, other in enumerate(groups):
                if i != j and not merged and belong(one, other):
                    joined = ([*other[0], *one[0]], Bbox.union([one[1], other[1]]))
                    groups = [g for k, g in enumerate(groups) if k not in (i, j)]
                    groups.insert(min(i, j), joined)
                    merged = True
    return groups


def _rows(panels: list[tuple[list[Any], Any]]) -> list[list[tuple[list[Any], Any]]]:
    """Sort panels into rows from the top, each from the left."""
    rows: list[list[tuple[list[Any], Any]]] = []
    for panel in sorted(panels, key=lambda panel: -panel[1].y1):
        if rows and panel[1].y1 > max(other[1].y0 for other in rows[-1]):
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return [sorted(row, key=lambda panel: panel[1].x0) for row in rows]


def _label_all(figure: Any) -> list[Callable[[], object]]:
    """Let each panel show the labels that it shares with its neighbors; return what undoes it.

    Panels that are set one below the other have no neighbors.
    """
    undo: list[Callable[[], object]] = []
    for ax in figure.axes:
        for name, side in (("x", "labelbottom"), ("y", "labelleft")):
            axis = getattr(ax, f"{name}axis")
            group = getattr(ax, f"get_shared_{name}_axes")().get_siblings(ax)
            if len(group) < 2 or axis.get_tick_params().get(side, True):
                continue
            said = next((o for other in group if (o := getattr(other, f"get_{name}label")())), "")
            if not axis.label.get_text():
                getattr(ax, f"set_{name}label")(said)
                undo.append(partial(getattr(ax, f"set_{name}label"), ""))
            ax.tick_params(axis=name, which="both", **{side: True})
            undo.append(partial(ax.tick_params, axis=name, which="both", **{side: False}))
    return undo


def _is_light(ax: Any) -> bool:
    """Tell whether the pictures of these axes have a white ground: where nothing is, or at 0."""
    from matplotlib.colors import Normalize

    def light(image: Any) -> bool:
        scale = image.norm if isinstance(image.norm, Normalize) else Normalize()
        ends = (0.0, 0.5) if scale.scaled() else (0.0,)
        return any(min(image.cmap(end)[:3]) > 0.9 for end in ends)

    return bool(ax.images) and all(light(image) for image in ax.images)


def _name_clips(drawing: str) -> str:
    """Name each clip path by what it says, to the digits that it says.

    Matplotlib names it by the exact floats, and the last bit of a constrained layout hangs on
    where in memory the solver's variables lie: the same figure would differ between two runs.
    """
    names: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        name = "p" + hashlib.sha256(found[2].encode()).hexdigest()[:10]
        known = name in names.values()
        names[found[1]] = name  # one shape, one definition
        return "" if known else f'<clipPath id="{name}">{found[2]}</clipPath>'

    drawing = re.sub(r'<clipPath id="(\w+)">(.*?)</clipPath>', rename, drawing, flags=re.DOTALL)
    return re.sub(r"url\(#(\w+)\)", lambda found: f"url(#{names.get(found[1], found[1])})", drawing)


def svg(figure: Any) -> str | None:
    """Draw a figure as SVG from which the book's pages are made.

    Text stays text. The attribute ``data-panels`` of the root lists the panels by rows, as boxes
    ``x y width height`` in points, and each group of axes or legend has the id
    ``panel-N-M``: part ``M`` of panel ``N``. Pictures with a white ground are marked by
    ``-light`` at the end of that id. The same figure gives the same text on every run.

    Args:
        figure: A Matplotlib figure.

    Returns:
        The drawing from its ``<svg>`` on, or None where it would be heavy: a picture serves
        better there.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, axes = plt.subplots(1, 2, figsize=size(1.0, 0.5))
        >>> svg(figure)[:12]
        '<svg data-pa'
        >>> plt.close(figure)
    """
    import matplotlib
    from matplotlib.transforms import Bbox

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "companion"}):
        undo = _label_all(figure)
        figure.draw_without_rendering()
        renderer = figure.canvas.get_renderer()
        rows = _rows(_panels(figure, renderer))
        panels = [panel for row in rows for panel in row]
        pad = matplotlib.rcParams["savefig.pad_inches"]
        whole = Bbox.union([box for _, box in panels]).padded(pad)
        described = []
        for number, (artists, _) in enumerate(panels):
            for part, artist in enumerate(artists):
                undo.append(partial(artist.set_gid, artist.get_gid()))
                light = "-light" if hasattr(artist, "images") and _is_light(artist) else ""
                artist.set_gid(f"panel-{number}-{part}{light}")
        for row in rows:
            top = max(box.y1 for _, box in row) + pad
            bottom = min(box.y0 for _, box in row) - pad
            boxes = []
            for n, (_, box) in enumerate(row):
                left = (row[n - 1][1].x1 + box.x0) / 2 if n else box.x0 - pad
                right = (box.x1 + row[n + 1][1].x0) / 2 if n + 1 < len(row) else box.x1 + pad
                place = (left - whole.x0, whole.y1 - top, right - left, top - bottom)
                boxes.append(" ".join(f"{72 * value:.1f}" for value in place))
            described.append(", ".join(boxes))
        buffer = io.BytesIO()
        try:
            figure.savefig(
                buffer, format="svg", bbox_inches=whole, dpi=200, metadata={"Date": None}
            )
        finally:
            for step in undo:
                step()
    drawing = buffer.getvalue().decode("utf-8")
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = _name_clips(drawing[drawing.index("<svg") + 4 :])
    drawing = f'<svg data-panels="{"; ".join(described)}"{drawing}'
    return drawing if len(drawing) <= HEAVY else None
