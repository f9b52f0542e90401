"""A reader of displayed mathematics: the formula on the page is the program that is checked."""

from companion.verify.tex._lexer import TexError
from companion.verify.tex._page import page
from companion.verify.tex._reading import over, samples, table

__all__ = ["TexError", "over", "page", "samples", "table"]
