"""Drawings in the page: colors of the theme, panels as boxes, letters, names, descriptions."""

import base64
import io
import re
import sys

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from .conftest import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))

from companion.core import figures
from companion_book import pictures


@pytest.fixture(scope="module")
def svg() -> str:
    """Two panels and a legend: curves with a formula, and a heat map with a number on it."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context():
        figures.style()
        figure, (left, right) = plt.subplots(1, 2, figsize=figures.size(1.0, 0.5))
        left.semilogy([1, 2], [1, 1e-3], color=figures.COLORS[1], label=r"$2/\beta$ rate")
        left.axhline(0.1, color="0.6")
        right.imshow([[0.0, 1.0], [2.0, 3.0]], cmap="Blues")
        right.text(0, 0, "seven", color="white")
        right.set(title="a map")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center")
        drawing = figures.svg(figure)
        plt.close(figure)
    assert drawing is not None
    return drawing


@pytest.fixture(scope="module")
def page(svg: str) -> BeautifulSoup:
    return BeautifulSoup(pictures.page_drawing(svg, 'A "falling"\n line'), "html.parser")


def test_a_drawing_has_a_description_and_hides_its_letters_from_voices(page: BeautifulSoup) -> None:
    (drawing,) = page.select(".drawing")
    assert drawing["role"] == "img"
    assert drawing["aria-label"] == 'A "falling" line'
    assert [len(row.select("svg[aria-hidden=true]")) for row in page.select(".panels")] == [2, 1]


def test_each_panel_holds_its_own_letters(page: BeautifulSoup) -> None:
    left, right, legend = page.select("svg.panel")
    assert "seven" in right.get_text()
    assert "seven" not in left.get_text()
    assert legend.get_text().replace("\xa0", " ") == "2/β rate"


def test_letters_of_a_formula_are_joined_in_the_order_in_which_they_stand(
    page: BeautifulSoup,
) -> None:
    pieces = [
        span.get_text().replace("\xa0", " ") for span in page.select("svg.panel")[2].select("tspan")
    ]
    assert pieces == ["2", "/", "β", " rate"]


def test_colors_of_the_book_become_variables_and_grays_mixtures(page: BeautifulSoup) -> None:
    left = str(page.select("svg.panel")[0])
    assert "var(--figure-vermillion)" in left
    assert "color-mix(in srgb, var(--figure-ink) 45%, var(--figure-ground))" in left
    assert not re.search(r"#(?:d55e00|1a1a1a|ffffff|999999)", left)


@pytest.mark.parametrize(
    ("color", "share"), [("#e3e3e3", 12), ("#999999", 45), ("#010101", 100), ("#fefefe", 0)]
)
def test_a_gray_is_as_much_ink_as_it_is_dark(color: str, share: int) -> None:
    assert f"var(--figure-ink) {share}%" in pictures.theme_color(color)


def test_other_colors_stay() -> None:
    assert pictures.recolor("fill: #123456; stroke: #d55e00") == (
        "fill: #123456; stroke: var(--figure-vermillion)"
    )


def test_names_in_a_drawing_are_its_own_and_lead_somewhere(svg: str, page: BeautifulSoup) -> None:
    names = [tag["id"] for tag in page.find_all(id=True)]
    assert len(names) == len(set(names)) > 0
    used = re.findall(r'(?:url\(|href=")#([\w-]+)', str(page))
    assert set(used) == set(names)
    other = pictures.page_drawing(svg.replace("seven", "eight"), "Another one")
    assert not set(names) & set(re.findall(r'id="([^"]+)"', other))


def test_a_heat_map_from_white_has_a_version_for_the_night(page: BeautifulSoup) -> None:
    day, night = page.select("image")
    assert day["class"] == ["figure-day"]
    assert night["class"] == ["figure-night"]
    # The number on it turns as well.
    assert "var(--figure-ground)" in str(page.find(string="seven").parent)


def test_numbers_on_a_heat_map_that_stays_keep_their_color(svg: str) -> None:
    drawing = pictures.page_drawing(svg.replace("-light", ""), "A falling line")
    assert "figure-night" not in drawing
    soup = BeautifulSoup(drawing, "html.parser")
    assert "#ffffff" in str(soup.find(string="seven").parent)
    assert "var(--figure-ink)" in str(soup.find(string="a map").parent)


def test_the_night_turns_lightness_around_and_keeps_the_hue() -> None:
    colors = np.array([[[255, 255, 255, 255], [8, 48, 107, 255], [120, 30, 30, 0]]], dtype="uint8")
    buffer = io.BytesIO()
    Image.fromarray(colors).save(buffer, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    made = pictures.dark_picture(address).split(",")[1]
    white, blue, red = np.asarray(Image.open(io.BytesIO(base64.b64decode(made))))[0].astype(int)
    assert white[:3].max() < 30
    assert blue[2] > blue[0]
    assert blue[:3].sum() > 450
    assert red[0] > red[1]
    assert red[3] == 0
