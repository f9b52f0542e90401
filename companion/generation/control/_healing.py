"""Token healing: a prompt that ends within a token is taken back to bytes."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch

from companion.core import check_count, check_ids
from companion.generation.control._vocabulary import Vocabulary

__all__ = ["Healed", "heal"]


class Healed(NamedTuple):
    """A prompt whose end is open.

    Attributes:
        ids: The tokens that stay.
        prefix: The bytes with which the continuation has to begin: those of the tokens that were
            taken back.
    """

    ids: list[int]
    prefix: bytes


def heal(ids: Sequence[int], vocabulary: Vocabulary) -> Healed:
    r"""Take back those last tokens of a prompt that might have been the beginning of one token.

    A tokenizer cuts ``http:`` before ``//`` otherwise than within ``http://``. If the prompt ends
    there, its last tokens are ones that the model has hardly ever seen before ``//``. The remedy
    is to keep what cannot change and to condition on the *bytes* of the rest,
    :meth:`Automaton.from_prefix`. As many tokens are taken back as may lie in one: not the last
    one only.

    Args:
        ids: The prompt.
        vocabulary: The tokens.

    Returns:
        The tokens that stay, and the bytes of the others: none, if no token begins with them. The
        first token always stays, since a model has to read something.

    Raises:
        ValueError: If the prompt is empty, or a token is out of range.

    References:
        Lundberg 2023, "The art of prompt design: prompt boundaries and token healing", for the
        last token; over all cuts, Vieira et al. 2025, arXiv:2412.03719.

    Book: :doc:`/book/generation/control`

    Example:
        >>> words = Vocabulary([b"http", b":", b"//", b"://", b"see "])
        >>> heal([4, 0, 1], words)
        Healed(ids=[4, 0], prefix=b':')
    """
    check_count("tokens of the prompt", len(ids))
    check_ids("ids", torch.tensor(list(ids)), len(vocabulary))
    order = sorted(vocabulary.tokens)
    kept, prefix, best = len(ids), b"", len(ids)
    while kept > 1 and vocabulary.tokens[ids[kept - 1]]:
        prefix = vocabulary.tokens[ids[kept - 1]] + prefix
        kept -= 1
        if len(prefix) >= vocabulary.longest:
            break
        place = bisect_left(order, prefix + b"\x00")
        if place < len(order) and order[place].startswith(prefix):
            best = kept
    return Healed(list(ids[:best]), vocabulary.decode(ids[best:]))
