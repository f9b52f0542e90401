r"""Changes of the logits that look at the text: penalties of what was said, and forbidden repeats.

Padding is no text: it is neither counted nor matched.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_in_range, check_shape
from companion.models import History

__all__ = [
    "frequency_penalty",
    "no_repeat_ngram",
    "presence_penalty",
    "repetition_penalty",
]


def repetition_penalty(
    logits: Float[Tensor, "batch vocab"], strength: float, history: History
) -> Float[Tensor, "batch vocab"]:
    r"""Make each token of the text less likely, once, however often it stands there.

    A positive logit is divided by :math:`\theta` and a negative one multiplied.

    Args:
        logits: Logits of the next token.
        strength: :math:`\theta > 0`; 1 changes nothing, below 1 repetition is rewarded.
        history: The text, prompt and all.

    Returns:
        New logits.

    Raises:
        ValueError: If the strength is not positive and finite.

    Numerics:
        The effect depends on where the zero of the logits lies, though the softmax does not: the
        same constant added to all logits changes what the penalty does.

    References:
        Keskar et al. 2019, arXiv:1909.05858, sec. 4.1, which divides only; the case of negative
        logits is that of the implementations since.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> seen = History(torch.tensor([[0, 1, 1]]), 3, None, torch.tensor([False]))
        >>> repetition_penalty(torch.tensor([[3.0, -1.0, 2.0]]), 1.5, seen)
        tensor([[ 2.0000, -1.5000,  2.0000]])
    """
    check_in_range("strength", strength, low=0.0, open_low=True, open_high=True)
    said = _counts(logits, history, 0) > 0
    punished = torch.where(logits < 0, logits * strength, logits / strength)
    return torch.where(said, punished, logits)


def presence_penalty(
    logits: Float[Tensor, "batch vocab"], strength: float, history: History
) -> Float[Tensor, "batch vocab"]:
    """Take a constant from the logit of each token that was written, prompts aside.

    Args:
        logits: Logits of the next token.
        strength: What is taken, in nats; negative to reward.
        history: The text.

    Returns:
        New logits.

    Raises:
        ValueError: If the strength is not finite.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> seen = History(torch.tensor([[0, 1, 1]]), 1, None, torch.tensor([False]))
        >>> presence_penalty(torch.tensor([[3.0, -1.0, 2.0]]), 0.5, seen)
        tensor([[ 3.0000, -1.5000,  2.0000]])
    """
    check_in_range("strength", strength, open_low=True, open_high=True)
    said = _counts(logits, history, history.prompt) > 0
    return torch.where(said, logits - strength, logits)


def frequency_penalty(
    logits: Float[Tensor, "batch vocab"], strength: float, history: History
) -> Float[Tensor, "batch vocab"]:
    """Take from each logit a constant times how often its token was written, prompts aside.

    Args:
        logits: Logits of the next token.
        strength: What one occurrence takes, in nats; negative to reward.
        history: The text.

    Returns:
        New logits.

    Raises:
        ValueError: If the strength is not finite.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> seen = History(torch.tensor([[0, 1, 1]]), 1, None, torch.tensor([False]))
        >>> frequency_penalty(torch.tensor([[3.0, -1.0, 2.0]]), 0.5, seen)
        tensor([[ 3., -2.,  2.]])
    """
    check_in_range("strength", strength, open_low=True, open_high=True)
    counts = _counts(logits, history, history.prompt)
    return logits - strength * counts.to(logits.dtype)


def no_repeat_ngram(
    logits: Float[Tensor, "batch vocab"], n: int, history: History
) -> Float[Tensor, "batch vocab"]:
    """Forbid each token that would complete an n-gram that stands in the text already.

    Args:
        logits: Logits of the next token.
        n: Length of the n-grams, 1 or more; 1 forbids every token of the text.
        history: The text, prompt and all.

    Returns:
        Logits, minus infinity where a token is forbidden. A row may lose all its tokens; drawing
        from it is then an error.

    Raises:
        ValueError: If n is below 1.

    References:
        Paulus et al. 2018, arXiv:1705.04304, sec. 2.5, for trigrams.

    Book: :doc:`/book/generation/decoding`

    Example:
        >>> seen = History(torch.tensor([[4, 2, 4]]), 3, None, torch.tensor([False]))
        >>> no_repeat_ngram(torch.zeros(1, 5), 2, seen)
        tensor([[0., 0., -inf, 0., 0.]])
    """
    check_count("n", n)
    check_shape("history.ids", history.ids, (logits.shape[0], None))
    ids, real = history.ids, history.real
    length = ids.shape[1]
    if length < n:
        return logits
    windows = ids.unfold(1, n, 1)
    repeats = (windows[..., :-1] == ids[:, None, length - n + 1 :]).all(-1)
    if real is not None:
        repeats = repeats & real.unfold(1, n, 1).all(-1)
    times = torch.zeros_like(logits, dtype=torch.long)
    times = times.scatter_add(1, windows[..., -1].long(), repeats.long())
    return logits.masked_fill(times > 0, float("-inf"))


def _counts(logits: Tensor, history: History, begin: int) -> Tensor:
    """How often each token stands in the text from a column on."""
    check_shape("history.ids", history.ids, (logits.shape[0], None))
    ids = history.ids[:, begin:].long()
    ones = torch.ones_like(ids) if history.real is None else history.real[:, begin:].long()
    return torch.zeros_like(logits, dtype=torch.long).scatter_add(1, ids, ones)
