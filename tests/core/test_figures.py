"""Figures: colors that can be told apart on white, sizes that fit the page."""

import itertools

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
