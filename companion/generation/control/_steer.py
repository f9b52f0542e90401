"""Control of activations: steering vectors, and steps uphill on an attribute (PPLM)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import check_count, check_in_range, check_same_shape, check_shape, watch

__all__ = ["pplm_objective", "pplm_step", "steer", "steering_vector"]


def steering_vector(
    wished: Float[Tensor, "n dim"], unwished: Float[Tensor, "m dim"]
) -> Float[Tensor, " dim"]:
    r"""Subtract the mean activation of unwished texts from that of wished ones.

    .. math:: v = \frac1n\sum_i h_i^+ - \frac1m\sum_j h_j^-

    Args:
        wished: :math:`h^+`, activations of one site, a row a text.
        unwished: :math:`h^-`.

    Returns:
        :math:`v`.

    Raises:
        ValueError: If the shapes do not fit.

    References:
        Rimsky et al. 2024, arXiv:2312.06681, over pairs; Turner et al. 2023,
        arXiv:2308.10248, for one pair.

    Book: :doc:`/book/generation/control`

    Example:
        >>> steering_vector(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([1., 2.])
    """
    check_shape("wished", wished, (None, None))
    check_shape("unwished", unwished, (None, wished.shape[1]))
    check_count("wished texts", len(wished))
    check_count("unwished texts", len(unwished))
    return wished.mean(0) - unwished.mean(0)


@contextmanager
def steer(
    model: nn.Module,
    site: str,
    vector: Float[Tensor, " dim"],
    *,
    strength: float,
    last: bool = False,
) -> Iterator[None]:
    r"""Add a vector to the activations of a site while the ``with`` block runs.

    .. math:: h \leftarrow h + \alpha v

    Args:
        model: A model with sites.
        site: The name of one, such as ``blocks.12.stream``: the stream *after* that block.
        vector: :math:`v`.
        strength: :math:`\alpha`; negative moves away.
        last: Whether only the last position of each reading is moved, and not all of them. Of a
            prompt that is its last token; with a cache, each new token after it.

    Raises:
        ValueError: If the model has no such site, or several match the name.

    Book: :doc:`/book/generation/control`
    """
    check_in_range("strength", strength, low=-float("inf"), open_low=True, open_high=True)
    if "*" in site:
        raise ValueError(f"{site!r} may match several sites, and the vector is that of one")

    def moved(h: Tensor) -> Tensor:
        check_shape("vector", vector, (h.shape[-1],))
        if not last:
            return h + strength * vector
        return torch.cat([h[..., :-1, :], h[..., -1:, :] + strength * vector], -2)

    with watch(model, replace={site: moved}):
        yield


def pplm_objective(
    hidden: Float[Tensor, "batch dim"],
    delta: Float[Tensor, "batch dim"],
    *,
    attribute: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
    kl_weight: float,
) -> Float[Tensor, " batch"]:
    r"""Weigh an attribute against what the next token was going to be.

    .. math:: J(\Delta h) = \log p(a\mid h+\Delta h)
        - \lambda\,\mathrm{KL}\big(p_{h+\Delta h}\,\|\,p_h\big)

    Args:
        hidden: :math:`h`.
        delta: :math:`\Delta h`.
        attribute: Gives :math:`\log p(a\mid h)`, (batch,).
        head: Gives logits of the next token.
        kl_weight: :math:`\lambda`.

    Returns:
        :math:`J`, in nats.

    Raises:
        ValueError: If the shapes differ, or the weight is below 0.

    References:
        Dathathri et al. 2020, arXiv:1912.02164

    Book: :doc:`/book/generation/control`
    """
    check_same_shape("hidden", hidden, "delta", delta)
    check_in_range("kl_weight", kl_weight, low=0.0, open_high=True)
    moved = head(hidden + delta).log_softmax(-1)
    before = head(hidden).log_softmax(-1)
    # What the moved law forbids adds nothing, and no difference of infinities.
    gap = (moved - before).masked_fill(moved == -torch.inf, 0.0)
    kl = (moved.exp() * gap).sum(-1)
    told = attribute(hidden + delta)
    check_shape("what attribute returns", told, (len(hidden),))
    return told - kl_weight * kl


def pplm_step(
    hidden: Float[Tensor, "batch dim"],
    delta: Float[Tensor, "batch dim"],
    *,
    attribute: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
    kl_weight: float,
    size: float,
) -> Float[Tensor, "batch dim"]:
    r"""Move activations uphill on an attribute: one step of PPLM.

    .. math:: \Delta h \leftarrow \Delta h + \eta\,\nabla_{\Delta h} J(\Delta h)

    Args:
        hidden: :math:`h`; no gradient goes into it.
        delta: :math:`\Delta h`, zeros at first.
        attribute: As in :func:`pplm_objective`.
        head: As there.
        kl_weight: :math:`\lambda`.
        size: :math:`\eta`. PPLM divides by the norm of the gradient, which is another choice of
            :math:`\eta`.

    Returns:
        The new :math:`\Delta h`.

    Raises:
        ValueError: As :func:`pplm_objective`, or if the size is not finite.

    Numerics:
        To first order a step raises :math:`J` by :math:`\eta\lVert\nabla J\rVert^2`.

    References:
        Dathathri et al. 2020, arXiv:1912.02164, with the KL term there.

    Book: :doc:`/book/generation/control`
    """
    check_in_range("size", size, low=-float("inf"), open_low=True, open_high=True)
    with torch.enable_grad():
        free = delta.detach().requires_grad_()
        reached = pplm_objective(
            hidden.detach(), free, attribute=attribute, head=head, kl_weight=kl_weight
        )
        (slope,) = torch.autograd.grad(reached.sum(), free)
    return delta.detach() + size * slope
