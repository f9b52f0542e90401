"""Learning-rate schedules: factors of the base rate, by step.

Steps count from 0. Each function returns the factor of one update, so it fits the ``schedule`` of
:func:`companion.core.train` and ``torch.optim.lr_scheduler.LambdaLR``. Warm-up is linear and
gives the first update the factor ``1 / warmup``, not 0: a step of length zero would only waste a
batch. The ``transformers`` library starts at 0. For :func:`warmup_cosine` and :func:`wsd` only
the warm-up differs by this one step: the decay is the same at the same step there. All of
:func:`inv_sqrt` is one step ahead.
"""

import math

from companion.core import check_in_range

__all__ = ["inv_sqrt", "warmup_cosine", "wsd"]


def _check(step: int, **lengths: int) -> None:
    if step < 0:
        raise ValueError(f"step counts from 0, got {step}")
    for name, length in lengths.items():
        if length < 0:
            raise ValueError(f"{name} must be 0 or more steps, got {length}")


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float = 0.0) -> float:
    r"""Return the factor of linear warm-up and cosine decay.

    .. math:: f(t) = \begin{cases} (t + 1) / w & t < w \\
        r + \tfrac{1 - r}{2} \Big(1 + \cos \pi \frac{t - w}{T - w}\Big) & w \le t < T \\
        r & t \ge T \end{cases}

    Args:
        step: :math:`t`, 0 for the first update.
        warmup: Steps :math:`w` of warm-up, 0 or more.
        total: Steps :math:`T > w` until the floor is reached.
        floor: Last factor :math:`r` in [0, 1]. Large runs often end at 0.1.

    Returns:
        A factor in (0, 1], or 0 at the end for a floor of 0.

    Raises:
        ValueError: If an argument is out of its domain.

    References:
        I. Loshchilov and F. Hutter, 2017, arXiv:1608.03983, eq. 5, without restarts; with warm-up
        as in T. Brown et al., 2020, arXiv:2005.14165, appendix B.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> [round(warmup_cosine(t, warmup=2, total=6), 3) for t in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    _check(step, warmup=warmup, total=total)
    check_in_range("floor", floor, low=0.0, high=1.0)
    if total <= warmup:
        raise ValueError(f"total must be above warmup, got {total} and {warmup}")
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / (total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(step: int, *, warmup: int, total: int, decay: int, floor: float = 0.0) -> float:
    r"""Return the factor of warm-up, a stable phase, and linear decay.

    .. math:: f(t) = \begin{cases} (t + 1) / w & t < w \\ 1 & w \le t < T - D \\
        1 - (1 - r) \frac{t - (T - D)}{D} & T - D \le t < T \\ r & t \ge T \end{cases}

    The stable phase does not depend on the total, so a run can be prolonged from a checkpoint
    before the decay.

    Args:
        step: :math:`t`, 0 for the first update.
        warmup: Steps :math:`w` of warm-up, 0 or more.
        total: Steps :math:`T` until the floor is reached.
        decay: Steps :math:`D` of decay, with :math:`w + D \le T`.
        floor: Last factor :math:`r` in [0, 1].

    Returns:
        A factor in (0, 1], or 0 at the end for a floor of 0.

    Raises:
        ValueError: If an argument is out of its domain.

    References:
        S. Hu et al., "MiniCPM", 2024, arXiv:2404.06395, section 4. They leave the form of the
        decay open; a line is used here.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> [wsd(t, warmup=2, total=8, decay=4) for t in range(9)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    _check(step, warmup=warmup, total=total, decay=decay)
    check_in_range("floor", floor, low=0.0, high=1.0)
    if warmup + decay > total:
        raise ValueError(f"warmup + decay must be at most total, got {warmup} + {decay} > {total}")
    if step < warmup:
        return (step + 1) / warmup
    if step < total - decay:
        return 1.0
    progress = min(1.0, (step - total + decay) / decay) if decay else 1.0
    return 1 - (1 - floor) * progress


def inv_sqrt(step: int, *, warmup: int) -> float:
    r"""Return the factor of linear warm-up and decay by the inverse square root.

    .. math:: f(t) = \min\Big(\frac{t + 1}{w}, \sqrt{\frac{w}{t + 1}}\Big)

    Args:
        step: :math:`t`, 0 for the first update.
        warmup: Steps :math:`w \ge 1` of warm-up.

    Returns:
        A factor in (0, 1], 1 at the last step of warm-up.

    Raises:
        ValueError: If an argument is out of its domain.

    References:
        A. Vaswani et al., 2017, arXiv:1706.03762, eq. 3, divided by its peak
        :math:`(d w)^{-1/2}`.

    Book: :doc:`/book/foundations/optimization`

    Example:
        >>> [inv_sqrt(t, warmup=4) for t in (0, 3, 15, 63)]
        [0.25, 1.0, 0.5, 0.25]
    """
    _check(step)
    if warmup < 1:
        raise ValueError(f"warmup must be 1 or more steps, got {warmup}")
    return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))
