r"""Changed copies of examples: mixtures of vectors, easy edits of words, slips of the keyboard."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, check_several, rand, randint
from companion.foundations.cross_entropy import cross_entropy

__all__ = ["KEYBOARD", "Mixed", "eda", "mixup", "mixup_cross_entropy", "typos"]


class Mixed(NamedTuple):
    """A batch of mixtures.

    Attributes:
        x: Mixed examples.
        first: Labels that count with the weight.
        second: Labels that count with one minus the weight.
        weight: The weight, one for the batch.
    """

    x: Float[Tensor, " batch ..."]
    first: Integer[Tensor, " batch"]
    second: Integer[Tensor, " batch"]
    weight: Float[Tensor, ""]


def _gamma(shape: float, generator: torch.Generator) -> float:
    """A gamma variable by Marsaglia and Tsang; below shape 1 by a power of a uniform number."""
    if shape < 1:
        power = float(rand(1, generator=generator, dtype=torch.float64)) ** (1 / shape)
        return float(_gamma(shape + 1, generator) * power)
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        normal = torch.randn(1, generator=generator, device=generator.device, dtype=torch.float64)
        x = float(normal)
        v = (1 + c * x) ** 3
        u = float(rand(1, generator=generator, dtype=torch.float64))
        if v > 0 and u > 0 and math.log(u) < x * x / 2 + d - d * v + d * math.log(v):
            return d * v


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A symmetric beta variable; for tiny parameters a fair coin, its limit."""
    first, second = _gamma(alpha, generator), _gamma(alpha, generator)
    if first + second == 0:
        return float(rand(1, generator=generator) < 0.5)
    return first / (first + second)


def mixup(
    x: Float[Tensor, " batch *shape"],
    y: Integer[Tensor, " batch"],
    *,
    alpha: float,
    generator: torch.Generator,
) -> Mixed:
    r"""Mix each example with another one of the batch: :math:`\lambda x_i+(1-\lambda)x_{\pi(i)}`.

    One :math:`\lambda` from :math:`\mathrm{Beta}(\alpha,\alpha)` for the batch, and one permutation
    :math:`\pi` for examples and labels.

    Args:
        x: Examples, or features of texts.
        y: Labels.
        alpha: :math:`\alpha`, 0 or above and finite. With 0, :math:`\lambda=1`, and the examples
            stay, bit for bit.
        generator: The source of randomness.

    Returns:
        Mixtures, and both labels.

    Raises:
        ValueError: If the examples are not floating, alpha is negative or not finite, or labels do
            not fit.

    References:
        Zhang et al. 2018, arXiv:1710.09412, eq. 1.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> mixed = mixup(torch.eye(3), torch.arange(3), alpha=1.0, generator=g)
        >>> float(mixed.x.sum()), 0 < float(mixed.weight) < 1
        (3.0, True)
    """
    check_floating("x", x)
    check_in_range("alpha", alpha, low=0.0, open_high=True)
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"y must have one label for each of {len(x)} examples, got {tuple(y.shape)}"
        )
    share = _beta(alpha, generator) if alpha > 0 else 1.0
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    weight = torch.tensor(share, dtype=x.dtype, device=x.device)
    mixed = x if share == 1.0 else weight * x + (1 - weight) * x[order]
    return Mixed(mixed, y, y[order], weight)


def mixup_cross_entropy(logits: Float[Tensor, "batch classes"], mixed: Mixed) -> Float[Tensor, ""]:
    r"""Compute :math:`\lambda\,\ell(z,y)+(1-\lambda)\,\ell(z,y')`, the mean over the batch.

    Cross-entropy is linear in the target, so this is the loss at the mixed target.

    Args:
        logits: Logits at the mixtures.
        mixed: The mixtures.

    Returns:
        The loss in nats.

    Raises:
        ValueError: If labels do not fit.

    References:
        Zhang et al. 2018, arXiv:1710.09412.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> half = Mixed(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([1]), torch.tensor(0.5))
        >>> mixup_cross_entropy(torch.tensor([[2.0, 0.0]]), half)
        tensor(1.1269)
    """
    one = cross_entropy(logits, mixed.first, reduction="none")
    other = cross_entropy(logits, mixed.second, reduction="none")
    mixed_loss: Tensor = (mixed.weight * one + (1 - mixed.weight) * other).mean()
    return mixed_loss


def _uniform(generator: torch.Generator) -> float:
    return float(rand(1, generator=generator, dtype=torch.float64))


def _pick(count: int, generator: torch.Generator) -> int:
    return int(randint(0, count, (1,), generator=generator))


def eda(
    words: Sequence[str],
    synonyms: Mapping[str, Sequence[str]],
    *,
    ratio: float = 0.1,
    copies: int = 4,
    generator: torch.Generator,
) -> list[list[str]]:
    r"""Edit a text easily: synonyms, insertions, swaps, deletions, one kind a copy in turn.

    With :math:`n=\max(1,\mathrm{round}(\text{ratio}\cdot l))` for :math:`l` words: :math:`n` words
    that have synonyms are replaced; or a synonym of a random word is inserted at a random place,
    :math:`n` times; or two random places are exchanged, :math:`n` times; or each word is
    deleted with the probability of the ratio, one at least staying.

    Args:
        words: The words.
        synonyms: What may stand for a word. Words that are not there are not replaced.
        ratio: Share of words to edit, in [0, 1].
        copies: How many edited copies to make.
        generator: The source of randomness.

    Returns:
        Copies. Their label is taken to be that of the text: nothing here makes sure of it.

    Raises:
        ValueError: If there is no word, or a number is out of its range.

    References:
        Wei and Zou 2019, arXiv:1901.11196, sec. 2.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> eda(["a", "fine", "film"], {"fine": ["good"]}, copies=1, generator=g)
        [['a', 'good', 'film']]
    """
    check_several("words", words)
    check_in_range("ratio", ratio, low=0.0, high=1.0)
    check_count("copies", copies)
    for word, others in synonyms.items():
        check_several(f"synonyms of {word!r}", others)
    if not words:
        raise ValueError("words must hold one word or more, got none")
    number = max(1, round(ratio * len(words)))
    kinds = (_replace, _insert, _swap, _delete)
    made = []
    for copy in range(copies):
        edit = kinds[copy % len(kinds)]
        made.append(edit(list(words), synonyms, number, ratio, generator))
    return made


def _with_synonyms(words: list[str], synonyms: Mapping[str, Sequence[str]]) -> list[int]:
    return [place for place, word in enumerate(words) if synonyms.get(word)]


def _synonym(word: str, synonyms: Mapping[str, Sequence[str]], g: torch.Generator) -> str:
    found = synonyms[word]
    return found[_pick(len(found), g)]


def _replace(
    words: list[str], synonyms: Mapping[str, Sequence[str]], n: int, _: float, g: torch.Generator
) -> list[str]:
    places = _with_synonyms(words, synonyms)
    order = torch.randperm(len(places), generator=g, device=g.device).tolist()
    for place in (places[k] for k in order[:n]):
        words[place] = _synonym(words[place], synonyms, g)
    return words


def _insert(
    words: list[str], synonyms: Mapping[str, Sequence[str]], n: int, _: float, g: torch.Generator
) -> list[str]:
    sources = [words[place] for place in _with_synonyms(words, synonyms)]
    for _ in range(n if sources else 0):
        word = _synonym(sources[_pick(len(sources), g)], synonyms, g)
        words.insert(_pick(len(words) + 1, g), word)
    return words


def _swap(
    words: list[str], _: Mapping[str, Sequence[str]], n: int, __: float, g: torch.Generator
) -> list[str]:
    for _turn in range(n):
        i, j = _pick(len(words), g), _pick(len(words), g)
        words[i], words[j] = words[j], words[i]
    return words


def _delete(
    words: list[str], _: Mapping[str, Sequence[str]], __: int, ratio: float, g: torch.Generator
) -> list[str]:
    drawn = rand(len(words), generator=g, dtype=torch.float64).tolist()
    kept = [word for word, u in zip(words, drawn, strict=True) if u >= ratio]
    return kept or [words[_pick(len(words), g)]]


_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
#: The keys beside each letter on an American keyboard, in the same row.
KEYBOARD: Mapping[str, str] = {
    letter: "".join(row[k] for k in (place - 1, place + 1) if 0 <= k < len(row))
    for row in _ROWS
    for place, letter in enumerate(row)
}


def typos(text: str, *, ratio: float, generator: torch.Generator) -> str:
    """Misspell some words, as fingers do.

    Of the words of four letters or more each is hit with the probability of the ratio, by one of
    four slips inside of it: two neighbors swapped, one letter lost, one doubled, one replaced by
    the key beside it. The first and the last letter stay, and so does everything between words.

    Args:
        text: The text.
        ratio: Share of the longer words to hit, in [0, 1].
        generator: The source of randomness.

    Returns:
        The text with its slips. With ratio 0 it is the text.

    Raises:
        ValueError: If the ratio is out of its range.

    References:
        After Belinkov and Bisk 2018, arXiv:1711.02173, sec. 4.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> typos("a wonderful film", ratio=1.0, generator=torch.Generator().manual_seed(1))
        'a wondefrul fim'
    """
    check_in_range("ratio", ratio, low=0.0, high=1.0)

    def slip(found: re.Match[str]) -> str:
        word = found[0]
        if _uniform(generator) >= ratio:
            return word
        place = 1 + _pick(len(word) - 2, generator)
        kind = _pick(4, generator)
        letter = word[place]
        if kind == 0 and place + 2 < len(word) and word[place + 1] != letter:
            return word[:place] + word[place + 1] + letter + word[place + 2 :]
        if kind == 1:
            return word[:place] + word[place + 1 :]
        keys = KEYBOARD.get(letter.lower(), "")
        if kind == 2 or not keys:
            return word[:place] + letter + word[place:]
        key = keys[_pick(len(keys), generator)]
        return word[:place] + (key.upper() if letter.isupper() else key) + word[place + 1 :]

    return re.sub(r"[^\W\d_]{4,}", slip, text)
