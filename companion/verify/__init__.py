"""The equation contract: a claim is checked where it is made, by a check that can fail.

Every displayed claim of the book, ``$$ ... $$ (eq:name)``, is followed by one of seven calls:

==========================  ======================================================================
:func:`page`                the formula itself, read from the page and evaluated
:func:`identity`            two SymPy expressions are equal
:func:`gradient`            a derivative, by SymPy, autograd, finite differences, hand-written code
:func:`equal`               two computations give the same numbers
:func:`bound`               an inequality holds, and is tight somewhere
:func:`expectation`         a mean, by Monte Carlo with a z-score
:func:`cost`                counted FLOPs or bytes
==========================  ======================================================================

Each call also proves its own power: it makes wrong versions of the claim, called mutants (a
flipped sign, a factor of two, a transpose, a dropped term, an index off by one), and must reject
every one of them. Inputs must be generic, since zeros, equal entries and square shapes hide
mistakes. The two sides of an equality must not go through one function of the library, where a
mistake would be on both. A call that passes prints one line and leaves a record in the notebook,
from which the book makes its ledger. A call that fails raises :class:`VerificationError`.
"""

from companion.verify._cost import cost, count_flops, peak_bytes
from companion.verify._gradient import gradient
from companion.verify._inputs import generic
from companion.verify._numeric import bound, equal, expectation
from companion.verify._record import Verification, VerificationError
from companion.verify._symbolic import identity
from companion.verify.tex import TexError, over, page, samples, table

__all__ = [
    "TexError",
    "Verification",
    "VerificationError",
    "bound",
    "cost",
    "count_flops",
    "equal",
    "expectation",
    "generic",
    "gradient",
    "identity",
    "over",
    "page",
    "peak_bytes",
    "samples",
    "table",
]
