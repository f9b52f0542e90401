r"""Adversaries of texts live on embeddings: FGM, FreeLB, and virtual adversarial training.

All three ask for one function: it takes an offset, which the caller adds to the embeddings of the
batch, and gives one number, or one row of log-probabilities, an example. Nothing else of the model
is known here. Dropout must be off, or be the same in each call.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import can_read, check_count, check_in_range, check_shape, rand, randn
from companion.knowledge.robustness._norms import check_examples, project, steepest

__all__ = ["FreeLB", "fgm", "freelb", "freelb_start", "vat_direction", "vat_loss"]

#: From an offset of shape (batch, n, dim) to one loss an example.
LossOf = Callable[[Tensor], Tensor]


def _slope(loss_of: LossOf, offset: Tensor) -> Tensor:
    """Gradient with respect to the offset alone."""
    with torch.enable_grad():
        leaf = offset.detach().clone().requires_grad_()
        losses = loss_of(leaf)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return gradient


def fgm(
    loss_of: LossOf, like: Float[Tensor, "batch n dim"], *, eps: float
) -> Float[Tensor, "batch n dim"]:
    r"""Return the offset :math:`r=\varepsilon g/\lVert g\rVert_2` of the fast gradient method.

    The length is taken over all tokens of an example together.

    Args:
        loss_of: Maps an offset of the embeddings to one loss an example.
        like: Embeddings of the batch, whose shape, device and dtype the offset takes.
        eps: Length :math:`\varepsilon`, 0 or above.

    Returns:
        The offset, without a graph; 0 where a gradient is 0. Train on
        ``loss_of(0) + loss_of(offset)``.

    Raises:
        ValueError: If the length is negative.

    References:
        Miyato, Dai and Goodfellow 2017, arXiv:1605.07725, sec. 3, where embeddings are normalized
        first, so that a model cannot escape by making them large.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> slope = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
        >>> fgm(lambda r: (slope * r).sum((1, 2)), torch.zeros(1, 2, 2), eps=1.0)
        tensor([[[0.6000, 0.0000],
                 [0.0000, 0.8000]]])
    """
    check_examples("like", like)
    check_in_range("eps", eps, low=0.0)
    return eps * steepest(_slope(loss_of, torch.zeros_like(like)), norm=2)


def freelb_start(
    real: Bool[Tensor, "batch n"],
    *,
    dim: int,
    eps: float,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch n dim"]:
    r"""Draw FreeLB's first offset: :math:`U(-\varepsilon,\varepsilon)/\sqrt{N_\delta}` an entry.

    :math:`N_\delta` is the number of entries of the real tokens of an example, so that the length
    is about :math:`\varepsilon/\sqrt3` whatever the text's length. Padding gets 0.

    Args:
        real: ``True`` for tokens.
        dim: Width of the embeddings.
        eps: Radius of the ball.
        generator: The source of randomness.
        dtype: Floating dtype of the offset.

    Returns:
        The offset.

    Raises:
        ValueError: If the radius is negative or the width not above 0.

    References:
        Zhu et al. 2020, arXiv:1909.11764, algorithm 1.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> real = torch.tensor([[True, True, False]])
        >>> start = freelb_start(real, dim=500, eps=1.0, generator=g)
        >>> round(float(start.norm()), 1), float(start[0, 2].abs().max())
        (0.6, 0.0)
    """
    check_count("dim", dim)
    check_in_range("eps", eps, low=0.0)
    shape = (*real.shape, dim)
    drawn = 2 * rand(*shape, generator=generator, device=real.device, dtype=dtype) - 1
    entries = (real.sum(1) * dim).clamp_min(1).to(dtype)
    return eps * drawn * real[..., None] / entries.sqrt()[:, None, None]


class FreeLB(NamedTuple):
    """What one FreeLB step has found.

    Attributes:
        loss: Mean loss over the climb and the batch.
        gradients: Gradient of that mean, one for each parameter that was given.
        offset: The offset at which the climb ended.
    """

    loss: Float[Tensor, ""]
    gradients: list[Float[Tensor, "..."]]
    offset: Float[Tensor, "batch n dim"]


def freelb(
    loss_of: LossOf,
    start: Float[Tensor, "batch n dim"],
    parameters: Sequence[Tensor],
    *,
    eps: float,
    step: float,
    steps: int,
) -> FreeLB:
    r"""Climb on embeddings, and keep the parameters' gradients of all the points on the way.

    .. math:: g=\frac1K\sum_{t=1}^K\nabla_\theta\ell(\theta,x+\delta_{t-1}),\qquad
        \delta_t=\Pi_\varepsilon\Bigl(\delta_{t-1}+\alpha\frac{\nabla_\delta\ell}{\lVert\nabla_\delta\ell\rVert_2}\Bigr)

    Each pass backward serves both: that is what is free.

    Args:
        loss_of: Maps an offset of the embeddings to one loss an example.
        start: First offset :math:`\delta_0`, of :func:`freelb_start` or zeros.
        parameters: Those whose gradients are wanted. All must have a part in the loss.
        eps: Radius of the ball, by the length of an example's offset.
        step: Step :math:`\alpha`, above 0.
        steps: :math:`K`, 1 or more.

    Returns:
        Mean loss, gradients, last offset. No ``.grad`` is touched.

    Raises:
        ValueError: If a number is out of its range, or the start lies outside of the ball.

    References:
        Zhu et al. 2020, arXiv:1909.11764, algorithm 1.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> x = torch.zeros(1, 1, 2)
        >>> found = freelb(lambda r: ((x + r) @ w).sum(1), x, [w], eps=1.0, step=1.0, steps=2)
        >>> round(float(found.loss), 3)  # 0 at the start, then the length of w
        1.118
    """
    check_examples("start", start)
    check_in_range("eps", eps, low=0.0)
    check_in_range("step", step, low=0.0, open_low=True)
    check_count("steps", steps)
    far = project(start, eps=eps * (1 + 1e-5), norm=2) != start
    if can_read(start) and bool(far.any()):
        raise ValueError(f"start must lie in the ball of radius {eps}: project it")
    delta = start.detach()
    total = None
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(steps):
        with torch.enable_grad():
            leaf = delta.clone().requires_grad_()
            losses = loss_of(leaf)
            # A step heeds the direction alone, so the factor 1 / batch of the mean does not matter.
            slope, *found = torch.autograd.grad(losses.mean(), [leaf, *parameters])
        sums = [before + part / steps for before, part in zip(sums, found, strict=True)]
        mean = losses.detach().mean() / steps
        total = mean if total is None else total + mean
        delta = project(delta + step * steepest(slope, norm=2), eps=eps, norm=2)
    assert total is not None
    return FreeLB(total, sums, delta)


def _kl(clean: Tensor, changed: Tensor) -> Tensor:
    """KL(clean || changed) of each example, from log-probabilities."""
    weight = clean.exp()
    # 0 log 0 = 0: what has no probability has no part.
    return torch.where(weight > 0, weight * (clean - changed), 0.0).sum(-1)


def _clean(log_probs_of: LossOf, like: Tensor) -> Tensor:
    """Log-probabilities at no offset; refused where a second look differs."""
    with torch.no_grad():
        zero = torch.zeros_like(like)
        clean = log_probs_of(zero)
        check_shape("the log-probabilities", clean, (len(like), None))
        if can_read(clean) and not torch.equal(clean, log_probs_of(zero)):
            raise ValueError(
                "log_probs_of gives other values at a second call: turn dropout off, or draw it "
                "anew from one seed in each call"
            )
    return clean


def vat_direction(
    log_probs_of: LossOf,
    like: Float[Tensor, " batch *shape"],
    *,
    xi: float = 1e-3,
    iterations: int = 1,
    generator: torch.Generator,
) -> Float[Tensor, " batch *shape"]:
    r"""Find the direction in which a model's own distribution changes most, without labels.

    Near 0 the divergence is :math:`\frac12rFr^\top`, so this is the top eigenvector of :math:`F`,
    up to its sign. Power iteration needs products :math:`dF` only, and one is a gradient:
    :math:`\nabla_r\mathrm{KL}` at :math:`r=\xi d` is :math:`\xi dF` and a smaller rest.

    Args:
        log_probs_of: Maps an offset to log-probabilities, (batch, classes).
        like: What the offset is added to.
        xi: Small length :math:`\xi` at which the gradient is taken, above 0.
        iterations: Power iterations, 1 or more.
        generator: Draws the first direction.

    Returns:
        Directions of length 1; 0 where the model does not react.

    Raises:
        ValueError: If a number is out of its range, or the model gives other values at a second
            call.

    Numerics:
        The divergence at the offset is of the order :math:`\xi^2`. In half precision it is lost in
        rounding, and so may be the offset itself: give float32, or a larger :math:`\xi`.

    References:
        Miyato et al. 2019, arXiv:1704.03976, sec. 3.3.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> w = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
        >>> d = vat_direction(lambda r: (r @ w).log_softmax(-1), torch.zeros(1, 2), generator=g)
        >>> bool(d[0, 0].abs() > 0.99)
        True
    """
    check_examples("like", like)
    check_in_range("xi", xi, low=0.0, open_low=True)
    check_count("iterations", iterations)
    clean = _clean(log_probs_of, like)
    drawn = randn(*like.shape, generator=generator, device=like.device, dtype=like.dtype)
    direction = steepest(drawn, norm=2)
    for _ in range(iterations):
        slope = _slope(lambda r: _kl(clean, log_probs_of(r)), xi * direction)
        direction = steepest(slope, norm=2)
    return direction


def vat_loss(
    log_probs_of: LossOf,
    like: Float[Tensor, " batch *shape"],
    *,
    eps: float,
    xi: float = 1e-3,
    iterations: int = 1,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    r"""Compute :math:`\mathrm{KL}(p(x)\Vert p(x+\varepsilon d))`, the mean over the batch, in nats.

    The clean distribution is a constant: gradients flow through the changed one only.

    Args:
        log_probs_of: Maps an offset to log-probabilities, (batch, classes).
        like: What the offset is added to.
        eps: Length :math:`\varepsilon` of the change, 0 or above.
        xi: As in :func:`vat_direction`.
        iterations: As in :func:`vat_direction`.
        generator: Draws the first direction.

    Returns:
        The divergence, 0 or above; exactly 0 for ``eps=0``.

    Raises:
        ValueError: As in :func:`vat_direction`.

    References:
        Miyato et al. 2019, arXiv:1704.03976, eq. 5 to 8.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> float(vat_loss(lambda r: r.log_softmax(-1), torch.zeros(1, 2), eps=0.0, generator=g))
        0.0
    """
    check_in_range("eps", eps, low=0.0)
    direction = vat_direction(log_probs_of, like, xi=xi, iterations=iterations, generator=generator)
    with torch.no_grad():
        clean = log_probs_of(torch.zeros_like(like))
    return _kl(clean, log_probs_of(eps * direction)).mean()
