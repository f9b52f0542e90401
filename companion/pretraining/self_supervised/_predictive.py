"""Predicting one view from the other: SimSiam, BYOL, and why they do not collapse."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from companion.core import check_in_range, check_same_shape, wide
from companion.pretraining.self_supervised._checks import check_pair

__all__ = ["byol_target_update_", "siamese_flow", "simsiam_loss"]


def simsiam_loss(
    P_u: Float[Tensor, "n dim"],
    P_v: Float[Tensor, "n dim"],
    Z_u: Float[Tensor, "n dim"],
    Z_v: Float[Tensor, "n dim"],
    *,
    stop_gradient: bool = True,
) -> Float[Tensor, ""]:
    r"""Return the loss of SimSiam: each prediction should point where the other view lies.

    .. math:: L = -\frac1{2N} \sum_i \Big[\cos\big(p^u_i, \mathrm{sg}(z^v_i)\big)
        + \cos\big(p^v_i, \mathrm{sg}(z^u_i)\big)\Big]

    where :math:`\mathrm{sg}` passes its argument on and stops the gradient.

    Args:
        P_u: What the predictor makes of the first view's representation.
        P_v: The same for the second view.
        Z_u: Representation of the first view, the target of ``P_v``.
        Z_v: Representation of the second view, the target of ``P_u``. In BYOL both targets come
            from a slow copy of the encoder.
        stop_gradient: Whether targets are constants. Without it the encoder collapses; the switch
            is there to see that.

    Returns:
        The loss in [-1, 1]. BYOL's is four times this plus four.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    References:
        Chen and He 2021, arXiv:2011.10566, eq. 4; Grill et al. 2020, arXiv:2006.07733, eq. 2.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> U = torch.tensor([[3.0, 4.0]])
        >>> simsiam_loss(U, U, U, 2 * U)
        tensor(-1.)
    """
    check_pair(P_u, Z_v, names=("P_u", "Z_v"))
    check_pair(P_v, Z_u, names=("P_v", "Z_u"))
    check_same_shape("P_u", P_u, "P_v", P_v)
    if stop_gradient:
        Z_u, Z_v = Z_u.detach(), Z_v.detach()
    p_u, p_v, z_u, z_v = (F.normalize(wide(rows), dim=-1) for rows in (P_u, P_v, Z_u, Z_v))
    return -((p_u * z_v).sum(-1).mean() + (p_v * z_u).sum(-1).mean()) / 2


@torch.no_grad()
def byol_target_update_(
    target: Iterable[Tensor], online: Iterable[Tensor], *, decay: float
) -> None:
    r"""Move a slow copy of a model toward the model, in place.

    .. math:: \xi \leftarrow \beta\, \xi + (1 - \beta)\, \theta

    Args:
        target: Parameters :math:`\xi` of the copy, such as ``copy.parameters()``.
        online: Parameters :math:`\theta` of the model, in the same order.
        decay: :math:`\beta` in [0, 1]: 0 copies, 1 does nothing.

    Raises:
        ValueError: If the numbers of tensors or their shapes differ, or the decay is out of
            range.

    References:
        Grill et al. 2020, arXiv:2006.07733, eq. 1; they raise the decay from 0.996 to 1.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> slow = torch.tensor([0.0])
        >>> byol_target_update_([slow], [torch.tensor([8.0])], decay=0.75)
        >>> slow
        tensor([2.])
    """
    check_in_range("decay", decay, low=0.0, high=1.0)
    slow, fast = list(target), list(online)
    if len(slow) != len(fast):
        raise ValueError(
            f"target and online must hold the same number of tensors, got {len(slow)} and "
            f"{len(fast)}"
        )
    for xi, theta in zip(slow, fast, strict=True):
        check_same_shape("target", xi, "online", theta)
    for xi, theta in zip(slow, fast, strict=True):
        xi.lerp_(theta.to(xi.dtype), 1 - decay)


def siamese_flow(
    p: Float[Tensor, "*modes"],
    s: Float[Tensor, "*modes"],
    *,
    noise: float,
    decay: float = 0.0,
    stop_gradient: bool = True,
    predictor: bool = True,
) -> tuple[Float[Tensor, "*modes"], Float[Tensor, "*modes"]]:
    r"""Return how each mode of a linear SimSiam moves under gradient flow.

    A linear encoder :math:`z = xW` and predictor :math:`zP` minimize
    :math:`\frac12 \mathbb E \lVert x_1 W P - \mathrm{sg}(x_2 W) \rVert^2` on views with
    :math:`\mathbb E\, x_1^\top x_1 = (1 + \sigma^2) \mathbf I` and
    :math:`\mathbb E\, x_1^\top x_2 = \mathbf I`, with weight decay :math:`\omega` on both. Where
    :math:`P` is symmetric and shares its eigenvectors with :math:`W^\top W`, the eigenvalues
    :math:`p` and :math:`s` of each vector move alone:

    .. math:: \dot p = s\,\big(1 - (1 + \sigma^2)\, p\big) - \omega p, \qquad
        \dot s = 2 s p\,\big(1 - (1 + \sigma^2)\, p\big) - 2 \omega s

    Args:
        p: Eigenvalues of the predictor.
        s: Eigenvalues of :math:`W^\top W`, 0 or more.
        noise: :math:`\sigma^2 \ge 0`, the variance that views do not share.
        decay: :math:`\omega \ge 0`.
        stop_gradient: Whether the target is a constant. Without it :math:`\dot s` gains the term
            :math:`2 s (p - 1 - \sigma^2)`.
        predictor: Whether the predictor learns. Without it :math:`\dot p = 0`; give
            :math:`p = 1` for no predictor at all.

    Returns:
        :math:`\dot p` and :math:`\dot s`.

    Raises:
        ValueError: If the shapes differ, or noise or decay is negative.

    References:
        Tian, Chen and Ganguli 2021, arXiv:2102.06810, section 3, with equal rates for both
        matrices and no moving average (:math:`\alpha_p = 1`, :math:`\tau = 1`), in rows instead
        of columns.

    Book: :doc:`/book/pretraining/self_supervised`

    Example:
        >>> siamese_flow(torch.tensor(0.5), torch.tensor(2.0), noise=0.5)
        (tensor(0.5000), tensor(0.5000))
    """
    check_same_shape("p", p, "s", s)
    check_in_range("noise", noise, low=0.0, open_high=True)
    check_in_range("decay", decay, low=0.0, open_high=True)
    error = 1 - (1 + noise) * p
    d_s = 2 * s * p * error - 2 * decay * s
    if not stop_gradient:
        d_s = d_s + 2 * s * (p - 1 - noise)
    d_p = s * error - decay * p if predictor else torch.zeros_like(p)
    return d_p, d_s
