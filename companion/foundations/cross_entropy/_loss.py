"""Cross-entropy from logits, with hard and soft targets, and its backward pass by hand."""

from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import can_read, check_floating, check_ids, check_in_range, wide
from companion.foundations.cross_entropy._softmax import logsumexp, softmax

__all__ = ["IGNORE", "cross_entropy", "cross_entropy_backward", "z_loss"]

Reduction = Literal["mean", "sum", "none"]

#: The target of a row that does not count, as in PyTorch.
IGNORE = -100


def check_targets(
    targets: Tensor, rows: tuple[int, ...], classes: int, ignore_index: int | None
) -> None:
    """Require target ids for the given rows, or distributions over the classes.

    Shapes and dtypes are checked always, values where :func:`companion.core.can_read` allows it.
    """
    if targets.is_floating_point():
        if tuple(targets.shape) != (*rows, classes):
            raise ValueError(
                f"soft targets must have the shape {(*rows, classes)} of the logits, "
                f"got {tuple(targets.shape)}"
            )
        if can_read(targets):
            _check_distributions(targets.detach())
        return
    if tuple(targets.shape) != rows:
        raise ValueError(
            f"target ids must have shape {rows}, one id for each row of logits, "
            f"got {tuple(targets.shape)}"
        )
    check_ids("targets", targets, classes, ignore=ignore_index)


def _check_distributions(targets: Tensor) -> None:
    least = float(targets.min())
    if not least >= 0:
        raise ValueError(
            f"soft targets are probabilities, but the least is {least}: pass softmax of them if "
            "they are logits"
        )
    # A sum over a vocabulary of numbers rounded to half precision drifts this far.
    allowed = 1e-3 if targets.dtype in (torch.float32, torch.float64) else 2e-2
    sums = wide(targets).sum(-1)
    worst = float(sums.reshape(-1)[(sums - 1).abs().reshape(-1).argmax()])
    if not abs(worst - 1) <= allowed:
        raise ValueError(f"soft targets must sum to 1 in each row, got {worst}: divide by the sum")


def check_reduction(reduction: str, allowed: tuple[str, ...] = ("mean", "sum", "none")) -> None:
    """Require a known reduction."""
    if reduction not in allowed:
        raise ValueError(f"reduction must be one of {', '.join(allowed)}, got {reduction!r}")


def _prepare(
    logits: Tensor, targets: Tensor, label_smoothing: float, ignore_index: int, reduction: str
) -> Tensor:
    check_floating("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits need an axis of classes, got shape {tuple(logits.shape)}")
    check_in_range("label_smoothing", label_smoothing, low=0.0, high=1.0)
    check_reduction(reduction)
    check_targets(targets, tuple(logits.shape[:-1]), logits.shape[-1], ignore_index)
    return wide(logits)


def cross_entropy(
    logits: Float[Tensor, "*batch classes"],
    targets: Integer[Tensor, "*batch"] | Float[Tensor, "*batch classes"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    r"""Return the cross-entropy between targets and the softmax of logits, in nats.

    .. math:: L_n = -\sum_k y_{nk} \log p_{nk} = \mathrm{lse}(z_n) - \langle y_n, z_n \rangle

    The second form holds because the targets sum to one: a difference of two numbers, with no
    probability in between. Soft targets are computed so, hard ones from the log-probabilities.

    Args:
        logits: Scores :math:`z` in nats, rows of :math:`K` classes.
        targets: Class ids in 0, ..., :math:`K - 1`, one a row (hard), or distributions :math:`y`
            over the classes (soft).
        label_smoothing: :math:`\varepsilon` in [0, 1]. Replaces :math:`y` by
            :math:`(1 - \varepsilon) y + \varepsilon / K`.
        ignore_index: Rows with this id do not count: their loss and gradient are exactly 0, and
            the mean leaves them out. Soft targets have no such rows.
        reduction: ``"mean"`` over the rows that count, ``"sum"``, or ``"none"``.

    Returns:
        The loss in nats, 0 or above: a scalar, or one number a row. In float32, or float64 for
        float64 logits. The mean over no rows is 0 with gradient 0, so that a batch of padding
        changes nothing; ``torch.nn.functional.cross_entropy`` returns NaN there.

    Raises:
        ValueError: If shapes or dtypes do not fit, the smoothing is outside [0, 1], an id is out
            of range, or soft targets are negative or do not sum to 1. Values are checked on the
            CPU, outside of ``torch.compile`` and ``torch.func.vmap``.

    Numerics:
        Finite for finite logits of any size. A masked class (``-inf``) is fine as long as its
        target weight is 0; otherwise the loss is ``inf``, as it should be.

    References:
        Label smoothing: C. Szegedy et al., arXiv:1512.00567, section 7.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> cross_entropy(torch.zeros(1, 7), torch.tensor([3]))
        tensor(1.9459)
    """
    z = _prepare(logits, targets, label_smoothing, ignore_index, reduction)
    if targets.is_floating_point():
        counts = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device)
        y = targets.to(z.dtype)
        # 0 * -inf is NaN, but a class of weight 0 adds nothing.
        absent = (y == 0) & torch.isneginf(z)
        score = (y * z.masked_fill(absent, 0.0)).sum(-1)
        if label_smoothing > 0:
            score = (1 - label_smoothing) * score + label_smoothing * z.mean(-1)
        losses = logsumexp(z) - score
    else:
        targets = targets.long()  # a narrow type may not hold ignore_index
        counts = targets != ignore_index
        # Any valid id will do where the row does not count.
        ids = torch.where(counts, targets, torch.zeros_like(targets))
        if not (can_read(counts) and bool(counts.all())):
            # An ignored row may hold anything, NaN included. Replaced here, it cannot reach a
            # gradient. The copy costs a pass over all logits, so it is made only where needed.
            z = torch.where(counts.unsqueeze(-1), z, torch.zeros_like(z))
        # PyTorch's kernel makes z - lse(z) in one pass, where the formula takes five.
        log_p = torch.log_softmax(z, -1)
        score = log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        if label_smoothing > 0:
            score = (1 - label_smoothing) * score + label_smoothing * log_p.mean(-1)
        losses = torch.where(counts, -score, torch.zeros_like(score))
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / counts.sum().clamp_min(1)


def cross_entropy_backward(
    logits: Float[Tensor, "*batch classes"],
    targets: Integer[Tensor, "*batch"] | Float[Tensor, "*batch classes"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*batch classes"]:
    r"""Return the gradient of :func:`cross_entropy` with respect to the logits, by hand.

    .. math:: \frac{\partial L_n}{\partial z_n} = p_n - y_n

    Args:
        logits: As in :func:`cross_entropy`.
        targets: As in :func:`cross_entropy`.
        label_smoothing: As in :func:`cross_entropy`.
        ignore_index: As in :func:`cross_entropy`.
        reduction: ``"mean"`` divides by the number of rows that count. ``"sum"`` and ``"none"``
            give each row the gradient of its own loss.

    Returns:
        The gradient, in the shape and dtype of the logits. Each row sums to 0, and has Euclidean
        norm at most :math:`\sqrt 2` before the division.

    Raises:
        ValueError: As in :func:`cross_entropy`.

    Numerics:
        Entries lie in [-1, 1] before the division, in any precision.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> cross_entropy_backward(torch.zeros(1, 4), torch.tensor([2]))
        tensor([[ 0.2500,  0.2500, -0.7500,  0.2500]])
    """
    z = _prepare(logits, targets, label_smoothing, ignore_index, reduction)
    grad = softmax(z)
    classes = z.shape[-1]
    if targets.is_floating_point():
        counts = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device)
        y = targets.to(z.dtype)
    else:
        targets = targets.long()  # a narrow type may not hold ignore_index
        counts = targets != ignore_index
        ids = torch.where(counts, targets, torch.zeros_like(targets))
        y = torch.zeros_like(z).scatter(-1, ids.unsqueeze(-1), 1.0)
    grad = grad - ((1 - label_smoothing) * y + label_smoothing / classes)
    grad = torch.where(counts.unsqueeze(-1), grad, torch.zeros_like(grad))
    if reduction == "mean":
        grad = grad / counts.sum().clamp_min(1)
    return grad.to(logits.dtype)


def z_loss(
    logits: Float[Tensor, "*batch classes"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    r"""Return the squared log-normalizer, a penalty that keeps logits from drifting.

    .. math:: L_z = \mathrm{lse}(z)^2, \qquad
        \frac{\partial L_z}{\partial z} = 2\,\mathrm{lse}(z)\, p

    Args:
        logits: Scores :math:`z` in nats.
        reduction: ``"mean"`` over rows, ``"sum"``, or ``"none"``.

    Returns:
        The penalty in squared nats, 0 or above. In float32, or float64 for float64 logits. The
        mean over no rows is 0.

    Raises:
        ValueError: If the logits are not floating or the reduction is unknown.

    Numerics:
        The usual weight in a training loss is small; PaLM takes :math:`10^{-4}`.

    References:
        A. Chowdhery et al., "PaLM", arXiv:2204.02311, section 5, with :math:`\log^2 Z`.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> z_loss(torch.tensor([[0.0, 0.0]]))
        tensor(0.4805)
    """
    check_floating("logits", logits)
    check_reduction(reduction)
    squares = logsumexp(wide(logits)) ** 2
    if reduction == "none":
        return squares
    return squares.sum() if reduction == "sum" else squares.sum() / max(squares.numel(), 1)
