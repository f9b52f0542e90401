r"""How good a language model is: perplexity and bits per byte."""

import math

from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_floating, wide

__all__ = ["bits_per_byte", "perplexity"]


def _checked(log_probs: Tensor) -> Tensor:
    check_floating("log_probs", log_probs)
    if log_probs.numel() == 0:
        raise ValueError("log_probs must hold at least one token, got none")
    return wide(log_probs)


def perplexity(log_probs: Float[Tensor, "*tokens"]) -> Float[Tensor, ""]:
    r"""Return the perplexity of a text, the geometric mean of 1/probability.

    .. math:: \mathrm{PPL} = \exp\Big(-\frac1n \sum_{i=1}^n \log q(w_i \mid w_{<i})\Big)

    Args:
        log_probs: Log-probability of each token in nats, EOS included.

    Returns:
        A number from 1 up, infinite where one token is impossible: the number of equally likely
        tokens that would be as hard to guess. It depends on what a token is.

    Raises:
        ValueError: If there is no token, or the dtype is not floating.

    Numerics:
        The mean is taken in float32 or better.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> import torch
        >>> perplexity(torch.tensor([0.5, 0.125]).log())
        tensor(4.)
    """
    return (-_checked(log_probs).mean()).exp()


def bits_per_byte(log_probs: Float[Tensor, "*tokens"], *, size: int) -> Float[Tensor, ""]:
    r"""Return how many bits the model needs for each byte of the text.

    .. math:: \mathrm{BPB} = -\frac{1}{n_{byte} \log 2} \sum_{i=1}^n \log q(w_i \mid w_{<i})
        = \frac{n}{n_{byte}} \log_2 \mathrm{PPL}

    Args:
        log_probs: Log-probability of each token in nats, for all tokens of the text.
        size: Length of the text in bytes, 1 or more.

    Returns:
        A number from 0 up. The unit does not depend on what a token is, so models with different
        tokenizers can be compared on the same text. Its mean over texts is at least the entropy
        of their source. Where a text has several tokenizations, that of one is an upper bound.

    Raises:
        ValueError: If there is no token, the dtype is not floating, or the size is below 1.

    Numerics:
        The sum is taken in float32 or better.

    Book: :doc:`/book/foundations/language_models`

    Example:
        >>> import torch
        >>> bits_per_byte(torch.tensor([0.5, 0.125]).log(), size=8)
        tensor(0.5000)
    """
    check_count("size", size, low=1)
    return -_checked(log_probs).sum() / (size * math.log(2))
