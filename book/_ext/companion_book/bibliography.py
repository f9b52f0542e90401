"""References by author and year, listed without labels.

Every chapter lists what it cites, so numbers would clash between chapters. The text says
"Yang et al., 2018", the list is sorted by author, and its hidden labels are the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style as UnsrtStyle
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx


class KeyLabels(BaseLabelStyle):  # type: ignore[misc]
    """Label an entry by its key, which is unique in the whole book."""

    def format_labels(self, sorted_entries: Iterable[Any]) -> Iterator[str]:
        """Yield one label for each entry."""
        for entry in sorted_entries:
            yield entry.key


class BookStyle(UnsrtStyle):  # type: ignore[misc]
    """Plain entries, sorted by author, year, and title."""

    default_sorting_style = "author_year_title"
    default_label_style = "book_key"


def setup(app: Sphinx) -> None:
    """Register the style."""
    register_plugin("pybtex.style.labels", "book_key", KeyLabels)
    register_plugin("pybtex.style.formatting", "book", BookStyle)
