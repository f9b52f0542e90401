"""One class drawn from the softmax of each row."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import can_read, check_count, check_in_range, rand, wide
from companion.foundations.cross_entropy import softmax

__all__ = ["check_rows", "draw"]


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
        ValueError: If there is no class, the temperature is below 0, or a row gives no
            distribution: a logit is NaN or :math:`+\infty`, or all are :math:`-\infty`.

    Numerics:
        One uniform number a row, by inversion of the cumulated probabilities in float32 or
        better. A class of probability 0 is never drawn, and a tiny temperature draws as its
        limit does. Values are checked on the CPU; an accelerator is not waited for, and there a
        row that gives no distribution ends in an assertion of the device.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> rows = torch.tensor([0.25, 0.75]).log().expand(10_000, 2)
        >>> round(float(draw(rows, generator=g).double().mean()), 1)
        0.8
    """
    check_in_range("temperature", temperature, low=0.0, open_high=True)
    check_count("classes", logits.shape[-1] if logits.ndim else 0)
    check_rows(logits)
    if temperature == 0:
        return logits.argmax(dim=-1)
    below = softmax(wide(logits), temperature=temperature).cumsum(-1)
    total = below[..., -1:]
    u = rand(*total.shape, generator=generator, device=logits.device, dtype=torch.float32)
    # Strictly below the total, so that the interval found has a positive width.
    point = torch.minimum(u.to(total.dtype) * total, torch.nextafter(total, total.new_zeros(())))
    return torch.searchsorted(below, point, right=True).squeeze(-1)


def check_rows(logits: Tensor) -> None:
    """Require that each row has a largest logit, and that it is finite."""
    if logits.is_meta or logits.numel() == 0:
        return
    fine = torch.isfinite(logits.detach().amax(-1))  # amax hands NaN on
    if not can_read(logits):
        # What torch.multinomial does: nothing waits, and the kernel speaks up.
        torch._assert_async(fine.all(), "a row of logits gives no distribution")
    elif not bool(fine.all()):
        worst = float(logits.detach().amax(-1)[~fine][0])
        raise ValueError(
            f"the largest logit of each row must be finite, got {worst}: no class can be drawn "
            "from such a row"
        )
