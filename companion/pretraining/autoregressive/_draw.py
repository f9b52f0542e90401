"""One class drawn from the softmax of each row."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, check_in_range, rand
from companion.foundations.cross_entropy import softmax

__all__ = ["draw"]


def draw(
    logits: Float[Tensor, "*batch vocab"],
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Integer[Tensor, "*batch"]:
    r"""Draw one class from the softmax of each row.

    .. math:: P(i) = \mathrm{softmax}(z / T)_i

    Args:
        logits: Logits :math:`z`, finite or :math:`-\infty`.
        generator: The source of randomness.
        temperature: :math:`T \ge 0`; 0 takes the largest logit, the limit from above.

    Returns:
        Class ids, int64.

    Raises:
        ValueError: If there is no class, or the temperature is below 0.

    Numerics:
        One uniform number a row, by inversion of the cumulated probabilities in float32 or
        better. A class of probability 0 is never drawn.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> rows = torch.tensor([0.25, 0.75]).log().expand(10_000, 2)
        >>> round(float(draw(rows, generator=g).double().mean()), 1)
        0.8
    """
    check_in_range("temperature", temperature, low=0.0, open_high=True)
    check_count("classes", logits.shape[-1] if logits.ndim else 0)
    if temperature == 0:
        return logits.argmax(dim=-1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    below = softmax(wide, temperature=temperature).cumsum(-1)
    total = below[..., -1:]
    u = rand(*total.shape, generator=generator, device=logits.device, dtype=torch.float32)
    # Strictly below the total, so that the interval found has a positive width.
    point = torch.minimum(u.to(total.dtype) * total, torch.nextafter(total, total.new_zeros(())))
    return torch.searchsorted(below, point, right=True).squeeze(-1)
