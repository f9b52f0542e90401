"""Figures: colors that can be told apart on white, sizes that fit the page."""

import itertools
import math
import re

import pytest

from companion.core import figures


def linear(channel):
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4


def luminance(color):
    red, green, blue = (linear(int(color[i : i + 2], 16) / 255) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def deuteranope(color):
    """What red-green color blindness leaves: a yellow-blue axis and lightness (Viénot 1999)."""
    red, green, blue = (linear(int(color[i : i + 2], 16) / 255) for i in (1, 3, 5))
    yellow = 0.29275 * red + 0.70725 * green
    return (yellow, -0.02234 * red + 0.02234 * green + blue)


def test_colors_stay_apart_for_color_blind_readers():
    for one, other in itertools.combinations(figures.COLORS, 2):
        a, b = deuteranope(one), deuteranope(other)
        assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) > 0.03, (one, other)


def test_red_and_green_of_equal_lightness_would_fail_that_test():
    a, b = deuteranope("#D05050"), deuteranope("#7E8450")
    assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) < 0.03


def test_text_reads_on_white():
    assert 1.05 / (luminance(figures.INK) + 0.05) > 7


def test_style_is_applied_and_sizes_are_checked():
    import matplotlib as mpl

    with mpl.rc_context():
        figures.style()
        assert mpl.rcParams["figure.facecolor"] == "white"
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(figures.COLORS)
    with pytest.raises(ValueError, match=r"0 < width <= 1"):
        figures.size(1.5)


def drawn(shape=(1, 2), **options):
    """A small figure with a legend, and what the book makes of it."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context():
        figures.style()
        figure, axes = plt.subplots(*shape, figsize=figures.size(1.0, 0.5), **options)
        for i, ax in enumerate(axes.flat):
            ax.plot([1, 2, 4], [i, 2, 3], label="a curve")
            ax.set(xlabel=f"time {i}", title=f"panel {i}")
        axes.flat[0].set(ylabel="height")
        yield figure, axes
        plt.close(figure)


def boxes(drawing):
    rows = re.match(r'<svg data-panels="([^"]*)"', drawing)[1].split(";")
    return [[[float(n) for n in box.split()] for box in row.split(",")] for row in rows]


def test_the_same_figure_gives_the_same_drawing_and_stays_as_it_was():
    texts = []
    for _ in range(2):
        for figure, axes in drawn(sharey=True):
            texts.append(figures.svg(figure))
            assert axes[1].get_ylabel() == ""
            assert axes[1].get_gid() is None
            assert axes[1].yaxis.get_tick_params()["labelleft"] is False
            assert figures.svg(figure) == texts[-1]
    assert texts[0] == texts[1]


def test_the_last_bit_of_a_layout_does_not_change_the_drawing():
    """The solver of the layout sums in the order of addresses in memory, which differs by run."""
    import matplotlib.pyplot as plt

    def drawing_of(width):
        figure = plt.figure(layout="none")
        axes = figure.add_axes((0.1, 0.2, width, 0.6))
        axes.plot([1, 2, 4], [3, 1, 2])
        drawing = figures.svg(figure)
        plt.close(figure)
        return drawing

    assert drawing_of(0.7) == drawing_of(math.nextafter(0.7, 1))
    assert drawing_of(0.7) != drawing_of(0.71)
    name = re.search(r'<clipPath id="(\w+)"', drawing_of(0.7))[1]
    assert f"url(#{name})" in drawing_of(0.7)


def test_clip_paths_that_print_the_same_are_defined_once():
    import matplotlib.pyplot as plt

    figure = plt.figure(layout="none")
    for left in (0.1, math.nextafter(0.1, 1)):
        figure.add_axes((left, 0.2, 0.7, 0.6)).plot([1, 2, 4], [3, 1, 2])
    drawing = figures.svg(figure)
    plt.close(figure)
    defined = re.findall(r'<clipPath id="(\w+)"', drawing)
    used = set(re.findall(r"url\(#(\w+)\)", drawing))
    assert len(defined) == len(set(defined)) == 1
    assert used == set(defined)


def test_text_of_a_drawing_is_text_and_no_date_is_in_it():
    for figure, _ in drawn():
        drawing = figures.svg(figure)
        assert ">panel 0</text>" in drawing
        assert "<metadata" not in drawing


def test_panels_partition_the_width_of_their_row():
    for figure, _ in drawn(shape=(2, 3)):
        rows = boxes(figures.svg(figure))
        assert [len(row) for row in rows] == [3, 3]
        for row in rows:
            for one, other in itertools.pairwise(row):
                assert one[0] + one[2] == pytest.approx(other[0], abs=0.2)
                assert one[1] == other[1]
        assert rows[0][0][1] < rows[1][0][1]


def test_a_legend_of_the_figure_is_a_row_of_its_own():
    for figure, axes in drawn():
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center")
        assert [len(row) for row in boxes(figures.svg(figure))] == [1, 2]


def test_a_color_bar_belongs_to_its_picture():
    for figure, axes in drawn():
        shown = axes[0].imshow([[0.0, 1.0], [2.0, 3.0]])
        figure.colorbar(shown, ax=axes[0])
        assert [len(row) for row in boxes(figures.svg(figure))] == [2]


def test_axes_that_overlap_are_one_panel():
    for figure, axes in drawn():
        axes[0].twinx().plot([3, 1])
        assert [len(row) for row in boxes(figures.svg(figure))] == [2]


def test_a_figure_with_a_title_is_not_taken_apart():
    for figure, _ in drawn():
        figure.suptitle("both")
        assert [len(row) for row in boxes(figures.svg(figure))] == [1]


def test_panels_show_the_labels_that_they_share():
    for figure, axes in drawn(sharey=True):
        axes[0].set_yticks([1, 2], ["low", "high"])
        drawing = figures.svg(figure)
        assert drawing.count(">low</text>") == 2
        assert drawing.count(">height</text>") == 2


def test_only_pictures_with_a_white_ground_are_marked():
    for figure, axes in drawn():
        axes[0].imshow([[0.0, 1.0], [2.0, 3.0]], cmap="Blues")
        axes[1].imshow([[0.0, 1.0], [2.0, 3.0]], cmap="cividis")
        names = re.findall(r'id="(panel-[^"]*)"', figures.svg(figure))
        assert names == ["panel-0-0-light", "panel-1-0"]


def test_a_heavy_figure_has_no_drawing():
    for figure, axes in drawn():
        axes[0].plot(range(5000), [i % 7 for i in range(5000)], "o")
        assert figures.svg(figure) is None
