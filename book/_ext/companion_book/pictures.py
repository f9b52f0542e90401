"""Figures as part of the page: drawings that take the colors of the theme and reflow on a phone.

A chapter's run leaves each figure as SVG (``companion.core.figures.svg``) beside a picture for
notebooks. Here the drawing is put into the page itself. Its colors become variables of the style
sheet, so one drawing serves light and dark pages; its panels become boxes that stand side by side
where there is room, and one below the other where there is none.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree as ET

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from .nodes_util import inline_error

# The colors of `companion.core.figures`, and the variables of book.css that stand for them.
NAMES = {
    "#0072b2": "blue",
    "#d55e00": "vermillion",
    "#009e73": "green",
    "#cc79a7": "purple",
    "#e69f00": "orange",
    "#56b4e9": "sky",
    "#1a1a1a": "ink",
    "#000000": "ink",
    "#ffffff": "ground",
}
INK, WHITE = 0x1A, 0xFF
SIGN = re.compile(r"[^\w\s.,'’()-]")
COLOR = re.compile(r"(?<![\w(])#[0-9a-f]{6}\b")


class drawing(nodes.Element):
    """A drawing that is written into the page as it is."""


def theme_color(color: str) -> str:
    """Return what stands for a color: a variable, a mixture of ink and ground, or itself.

    >>> theme_color("#0072b2"), theme_color("#123456")
    ('var(--figure-blue)', '#123456')
    >>> theme_color("#e3e3e3")
    'color-mix(in srgb, var(--figure-ink) 12%, var(--figure-ground))'
    """
    if color in NAMES:
        return f"var(--figure-{NAMES[color]})"
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    if max(red, green, blue) - min(red, green, blue) > 2:
        return color
    share = min(100, round(100 * (WHITE - green) / (WHITE - INK)))
    return f"color-mix(in srgb, var(--figure-ink) {share}%, var(--figure-ground))"


def recolor(text: str) -> str:
    """Put variables in the place of the colors of a style."""
    return COLOR.sub(lambda match: theme_color(match[0]), text)


def dark_picture(address: str) -> str:
    """Turn the lightness of a picture around and keep its hues; it is given and returned as data.

    What was white is then as dark as the page, and what was dark stands out.
    """
    import numpy as np
    from PIL import Image

    head, data = address.split(",", 1)
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
    values = np.asarray(picture, dtype=np.float64)
    # The matrix of hue-rotate(180deg) in CSS, applied to the inverted colors.
    turn = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])
    turned = np.clip((255 - values[..., :3]) @ turn.T, 0x12, 255)
    made = np.dstack([turned, values[..., 3:]]).round().astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(made).save(buffer, "PNG", optimize=True)
    return f"{head},{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def join_letters(text: ET.Element) -> None:
    """Join the letters of a formula, which Matplotlib places one by one, to pieces of a line."""
    letters = sorted(text, key=lambda letter: float(letter.get("x", "0")))
    for letter in letters:
        text.remove(letter)
        letter.tail = None
        last = text[-1] if len(text) else None
        same = last is not None and all(letter.get(n) == last.get(n) for n in ("y", "style"))
        # Signs such as × have space around them, which a joined line would not have.
        if same and last is not None and not SIGN.search(f"{last.text}{letter.text}"):
            last.text = (last.text or "") + (letter.text or "")
        else:
            text.append(letter)
    if len(text):
        text.text = None


def tighten(root: ET.Element) -> None:
    """Take out the white space that only lays out the file, and what a path has too much of."""
    for element in root.iter():
        if element.tag not in ("text", "tspan"):
            element.text = None
        element.tail = None
        if (path := element.get("d")) is not None:
            element.set("d", " ".join(path.split()))


def rename(root: ET.Element, prefix: str) -> None:
    """Give parts that others refer to names that no other figure has; drop all other names."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {name for value in values for name in re.findall(r"url\(#([^)]+)\)", value)}
    used |= {value[1:] for value in values if value.startswith("#")}
    new = {name: f"{prefix}-{number}" for number, name in enumerate(sorted(used))}
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                del element.attrib[key]
                if value in new:
                    element.set("id", new[value])
            elif value[1:] in new and value.startswith("#"):
                element.set(key, f"#{new[value[1:]]}")
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{new[m[1]]})", value))


def restyle(part: ET.Element) -> None:
    """Take colors and fonts from the page.

    Numbers that stand on the cells of a heat map keep their colors, as its cells do.
    """
    fixed: set[ET.Element] = set()
    pictures = list(part.iter("image"))
    if pictures and not part.get("id", "").endswith("-light"):
        for child in part:
            # Its title is in ink, and numbers are black or white.
            ink = "#1a1a1a" in ET.tostring(child, encoding="unicode")
            if child.get("id", "").startswith("text_") and not ink:
                fixed.update(child.iter())
    for element in part.iter():
        style = element.get("style")
        if style is not None:
            style = re.sub(r"font-family:[^;]*;?\s*", "", style).strip().rstrip(";")
            element.set("style", style if element in fixed else recolor(style))
        for name in ("fill", "stroke"):
            if (value := element.get(name)) is not None and element not in fixed:
                element.set(name, recolor(value))
        if element.tag == "text":
            join_letters(element)
            if re.match(r"rotate\(-?0 ", element.get("transform", "")):
                del element.attrib["transform"]
    for parent in list(part.iter()):
        for at, picture in reversed(list(enumerate(parent))):
            if picture in pictures and part.get("id", "").endswith("-light"):
                night = ET.Element("image", dict(picture.attrib))
                night.set("href", dark_picture(picture.get("href", "")))
                picture.set("class", "figure-day")
                night.set("class", "figure-night")
                parent.insert(at + 1, night)


def page_drawing(svg: str, description: str) -> str:
    """Make the HTML of a figure from what ``companion.core.figures.svg`` drew."""
    prefix = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}"
    plain = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    root = ET.fromstring(re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", plain, flags=re.S))
    figure = next(child for child in root if child.tag == "g")
    parts: dict[int, list[ET.Element]] = {}
    for child in list(figure):
        if match := re.match(r"panel-(\d+)-", child.get("id", "")):
            parts.setdefault(int(match[1]), []).append(child)
        elif not child.get("id", "").startswith("patch_") and len(child):
            parts.setdefault(0, []).append(child)  # a title of the figure
    shared = [child for child in root if child.tag == "defs"]
    for group in parts.values():
        for part in group:
            restyle(part)
    tighten(root)
    rename(root, prefix)
    rows, number = [], 0
    for row in root.get("data-panels", "").split(";"):
        boxes = []
        for panel in row.split(","):
            x, y, width, height = (float(value) for value in panel.split())
            inside = [*(shared if number == 0 else ()), *parts.get(number, ())]
            content = "".join(ET.tostring(part, encoding="unicode") for part in inside)
            size = f"--w: {width:g}; aspect-ratio: {width:g} / {height:g}"
            boxes.append(
                f'<svg class="panel" viewBox="{x:g} {y:g} {width:g} {height:g}" style="{size}"'
                f' aria-hidden="true" focusable="false">{content}</svg>'
            )
            number += 1
        rows.append(f'<div class="panels">{"".join(boxes)}</div>')
    label = html.escape(" ".join(description.split()), quote=True)
    return f'<div class="drawing" role="img" aria-label="{label}">{"".join(rows)}</div>'


class InlineDrawings(SphinxPostTransform):
    """Put drawings in the place of references to their files."""

    default_priority = 8  # after MyST-NB has chosen among the forms of an output
    formats: ClassVar[tuple[str, ...]] = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Replace every image that is a drawing of the book's own."""
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.env.srcdir, image["uri"].lstrip("/"))
            if path.suffix != ".svg" or not path.is_file():
                continue
            svg = path.read_text(encoding="utf-8")
            if svg.startswith("<svg data-panels="):
                made = drawing("", html=page_drawing(svg, image.get("alt", "")))
                image.replace_self(made)


def visit_drawing(translator: Any, node: drawing) -> None:
    """Write the drawing."""
    translator.body.append(node["html"])
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the transform and its node."""
    app.add_node(
        drawing,
        html=(visit_drawing, None),
        latex=(inline_error, None),
        text=(inline_error, None),
    )
    app.add_post_transform(InlineDrawings)
