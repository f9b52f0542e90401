r"""Debiasing at the text: what a corpus counts, and swapped words."""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_finite,
    check_in_range,
    check_same_shape,
    check_several,
    check_shape,
    wide,
)

__all__ = ["SwapLexicon", "bias_amplification", "log_skew"]

_WORD = re.compile(r"[^\W\d_]+")
# What cannot follow "her" or "his" where it owns something: "saw her and", "his is".
_CLOSES = frozenset(
    re.findall(
        r"\w+",
        "a about after again all also an and are as at away back be because been before but by "
        "can could did do does down even ever every for from go had has have he here home how i "
        "if in into is it just may me might more must never no nor not now of off on once only "
        "onto or out over she should since so some than that the then there these they this those "
        "though through to today too toward under until up upon us was we were what when where "
        "which while who whom why will with without would yet you",
    )
)
_PRONOUNS = frozenset(("he", "she", "him", "her", "his", "hers", "himself", "herself"))


class SwapLexicon:
    """Pairs of words that change places: counterfactual data augmentation.

    The pronouns are always there. English uses *her* for two words and *his* for two others, so
    they are told apart by what follows: *her hat* and *his hat*, *saw her* and *saw him*, *is hers*
    and *is his*. That rule is wrong at times.

    Args:
        pairs: Further words, such as ``("king", "queen")``, in lower case.

    Attributes:
        partner: The other word of each word.

    Raises:
        ValueError: If a word stands in two pairs or with itself (a swap would then not undo
            itself), is no single lower-case word, or is a pronoun.

    References:
        Zhao et al. 2018, arXiv:1804.06876; Lu et al. 2018, arXiv:1807.11714. Swapped words are not
        always sentences that anybody would say: names, spouses and grammar stay.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> SwapLexicon([("king", "queen")]).swap("The King saw her crown, and she saw him.")
        'The Queen saw his crown, and he saw her.'
    """

    def __init__(self, pairs: Sequence[tuple[str, str]] = ()) -> None:
        self.partner = {"he": "she", "she": "he", "himself": "herself", "herself": "himself"}
        for pair in pairs:
            check_several("a pair", pair)
            if len(pair) != 2:
                raise ValueError(f"a pair must have two words, got {pair!r}")
            for word in pair:
                if not _WORD.fullmatch(word) or word != word.lower():
                    raise ValueError(f"{word!r} must be one word in lower case")
                if word in self.partner or word in _PRONOUNS or pair[0] == pair[1]:
                    raise ValueError(
                        f"{word!r} has more than one partner, or is its own: swapping twice would "
                        "not give the text back; leave one of its pairs out"
                    )
            self.partner[pair[0]], self.partner[pair[1]] = pair[1], pair[0]

    def swap(self, text: str) -> str:
        """Exchange all words that have a partner.

        Args:
            text: Any text.

        Returns:
            The text with as many words, each as capital as it was.
        """
        made, last = [], 0
        for found in _WORD.finditer(text):
            word = found.group()
            other = self._other(word.lower(), text, found.end())
            made += [text[last : found.start()], _cased(other, word)]
            last = found.end()
        return "".join([*made, text[last:]])

    def counts(self, text: str) -> tuple[int, int]:
        """Count the words of a text that have a partner, by their side.

        Args:
            text: Any text.

        Returns:
            How many are a first word of a pair (*he*, *him*, *his*, *himself*), and how many a
            second one.
        """
        order = list(self.partner)
        first = {order[i] for i in range(0, len(order), 2)} | {"him", "his"}
        second = {order[i] for i in range(1, len(order), 2)} | {"her", "hers"}
        words = [found.group().lower() for found in _WORD.finditer(text)]
        return sum(word in first for word in words), sum(word in second for word in words)

    def _other(self, word: str, text: str, end: int) -> str:
        if word == "him":
            return "her"
        if word == "hers":
            return "his"
        if word in ("her", "his"):
            after = re.match(r"\s+([^\W\d_]+)", text[end : end + 40])
            owns = after is not None and after.group(1).lower() not in _CLOSES
            if word == "her":
                return "his" if owns else "him"
            return "her" if owns else "hers"
        return self.partner.get(word, word)


def _cased(word: str, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word


def _check_counts(name: str, counts: Tensor) -> None:
    check_finite(name, counts)
    if can_read(counts) and bool((counts < 0).any()):
        raise ValueError(f"{name} must hold counts, 0 or more, got {float(counts.min())}")


def log_skew(
    first: Float[Tensor, " words"], second: Float[Tensor, " words"], *, smoothing: float = 0.5
) -> Float[Tensor, " words"]:
    r"""Compare how often words stand in the contexts of two groups.

    .. math:: \log\frac{P(w\mid g_1)}{P(w\mid g_2)},\qquad
        P(w\mid g) = \frac{c_{wg}+\alpha}{\sum_v(c_{vg}+\alpha)}

    Args:
        first: Counts :math:`c_{w1}`.
        second: Counts :math:`c_{w2}`.
        smoothing: :math:`\alpha > 0`, so that what was not seen is not impossible.

    Returns:
        Nats; 0 for a word that both groups have equally often.

    Raises:
        ValueError: If the shapes differ, a count is negative or not finite, or the smoothing is not
            above 0.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> log_skew(torch.tensor([3.5, 1.5]), torch.tensor([1.5, 3.5]))
        tensor([ 0.6931, -0.6931])
    """
    check_same_shape("first", first, "second", second)
    check_shape("first", first, (None,))
    check_in_range("smoothing", smoothing, low=0.0, open_low=True, open_high=True)
    for name, count in (("first", first), ("second", second)):
        _check_counts(name, count)
    made = [wide(count) + smoothing for count in (first, second)]
    return (made[0] / made[0].sum()).log() - (made[1] / made[1].sum()).log()


def bias_amplification(
    training: Float[Tensor, "items groups"], predicted: Float[Tensor, "items groups"]
) -> Float[Tensor, ""]:
    r"""Compute by how much predictions lean more than the data that taught them.

    .. math:: \frac1{|O|}\sum_g\ \sum_{o:\,b^*(o,g)>1/|G|}\tilde b(o,g)-b^*(o,g),
        \qquad b(o,g) = \frac{c(o,g)}{\sum_{g'}c(o,g')}

    Args:
        training: Counts of items with groups in the training data; :math:`b^*` is their share.
        predicted: Counts in the predictions; :math:`\tilde b`.

    Returns:
        A number in [-1, 1]: 0 if predictions lean as the data do.

    Raises:
        ValueError: If the shapes differ, there is no item or one group only, a count is negative or
            not finite, or an item has no count at all, so that it has no shares.

    References:
        Zhao et al. 2017, arXiv:1707.09457, eq. 2.

    Book: :doc:`/book/trust/debiasing`

    Example:
        >>> bias_amplification(torch.tensor([[6.0, 4.0]]), torch.tensor([[8.0, 2.0]]))
        tensor(0.2000)
    """
    check_same_shape("training", training, "predicted", predicted)
    check_shape("training", training, (None, None))
    check_count("items", len(training))
    check_count("groups", training.shape[1], low=2)
    for name, count in (("training", training), ("predicted", predicted)):
        _check_counts(name, count)
        if can_read(count) and bool((count.sum(1) == 0).any()):
            item = int((count.sum(1) == 0).nonzero()[0])
            raise ValueError(f"item {item} has no count in {name}, so no shares: leave it out")
    before, after = (wide(c) / wide(c).sum(1, keepdim=True) for c in (training, predicted))
    leaning = before > 1 / training.shape[1]
    return torch.where(leaning, after - before, 0.0).sum() / len(training)
