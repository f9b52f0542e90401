r"""Two towers and one space: CLIP's and SigLIP's losses, in chunks, and across processes."""

import math
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from companion.core import (
    check_count,
    check_floating,
    check_in_range,
    check_same_shape,
    check_shape,
    wide,
)
from companion.transformer.attention._inputs import full_precision

__all__ = ["DualEncoder", "clip_gradient", "clip_loss", "siglip_bias", "siglip_loss"]


def clip_loss(
    U: Float[Tensor, "n dim"],
    V: Float[Tensor, "n dim"],
    log_scale: Float[Tensor, ""] | float,
    *,
    chunk_size: int | None = None,
    across: bool = False,
) -> Float[Tensor, ""]:
    r"""Return CLIP's loss of a batch of pairs, in nats.

    .. math:: S = e^{s} \, U V^\top, \qquad
        L = \tfrac12 \bigl[\mathrm{CE}(S, \mathrm{id}) + \mathrm{CE}(S^\top, \mathrm{id})\bigr]

    Row :math:`i` of both matrices comes from one pair; each row of ``U`` looks for its partner
    among those of ``V``, and the other way round. :math:`e^s` is one over the temperature.

    Args:
        U: Vectors of one modality. Rows are taken as they are: normalize them first
            (:class:`DualEncoder` does).
        V: Those of the other, in the same order.
        log_scale: :math:`s`, the **logarithm** of the scale; CLIP starts with
            :math:`\ln(1/0.07) = 2.66`. A learned one may grow without bound: see
            :meth:`DualEncoder.limit_`.
        chunk_size: Rows of ``U`` whose scores are held at a time. By default all are held, and
            memory grows with :math:`n^2`; with chunks it grows with :math:`n`.
        across: Whether the batch is spread over the processes of the default group, the same number
            of pairs on each. Every process then returns the loss of the whole batch.

    Returns:
        The mean loss, a scalar in float32, or float64 for float64 inputs; :math:`\ln n` where all
        scores are equal.

    Raises:
        ValueError: If shapes do not fit, there is one pair only, or ``across`` is asked for where
            no group of processes runs.

    Numerics:
        Scores are formed in float32 or better, under autocast as well. In chunks they are computed
        again for the gradient: four matrix products for the dense loss's three, and no
        :math:`n \times n` matrix in memory; there is no second derivative. **Across processes** the
        gradient on each is :math:`W` times its own part, for :math:`W` processes, so that the mean
        that ``DistributedDataParallel`` takes is the gradient of the whole batch. Without
        ``across`` a process sees its own negatives only, and the loss is another one. Two equal
        rows of ``V`` are negatives of each other although they should not be: the loss cannot fall
        below the mean log of the multiplicity.

    References:
        Radford et al. 2021, arXiv:2103.00020, fig. 3. Chunks across processes after Chen et al.
        2023, "DisCo-CLIP", arXiv:2304.08480.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> U = torch.eye(2, dtype=torch.float64)
        >>> clip_loss(U, U, 0.0)
        tensor(0.3133, dtype=torch.float64)
    """
    U, V, s = _pairs(U, V, log_scale)
    n = len(U) * _world(across)
    if n < 2:
        raise ValueError("one pair has no negative: give at least two")
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    if chunk_size is None and not across:
        with full_precision(U):
            S = s.exp() * (U @ V.T)
        ids = torch.arange(len(U), device=U.device)
        return (F.cross_entropy(S, ids) + F.cross_entropy(S.T, ids)) / 2
    with full_precision(U):
        loss: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
            U, V, s, chunk_size or len(U), across
        )
    return loss


def clip_gradient(
    U: Float[Tensor, "n dim"], V: Float[Tensor, "n dim"], log_scale: Float[Tensor, ""] | float
) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"], Float[Tensor, ""]]:
    r"""Return the gradients of :func:`clip_loss` by hand.

    .. math:: G = \frac1n \Bigl(\frac{P_r + P_c}2 - I\Bigr), \qquad
        \mathrm dU = e^s G V, \quad \mathrm dV = e^s G^\top U, \quad
        \mathrm ds = \sum_{ij} G_{ij} S_{ij}

    :math:`P_r` is the softmax of each row of :math:`S`, :math:`P_c` that of each column.

    Args:
        U: Vectors of one modality.
        V: Those of the other.
        log_scale: The logarithm of the scale.

    Returns:
        Gradients in the shapes of the inputs.

    Raises:
        ValueError: If shapes do not fit, or there is one pair only.

    References:
        By hand; the formulas stand in the chapter.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> U = torch.eye(2, dtype=torch.float64)
        >>> clip_gradient(U, U, 0.0)[2]
        tensor(-0.2689, dtype=torch.float64)
    """
    U, V, s = _pairs(U, V, log_scale)
    if len(U) < 2:
        raise ValueError("one pair has no negative: give at least two")
    with full_precision(U):
        S = s.exp() * (U @ V.T)
        G = (S.softmax(1) + S.softmax(0)) / 2 - torch.eye(len(U), device=U.device, dtype=U.dtype)
        G = G / len(U)
        return s.exp() * (G @ V), s.exp() * (G.T @ U), (G * S).sum()


def siglip_loss(
    U: Float[Tensor, "n dim"],
    V: Float[Tensor, "n dim"],
    log_scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    *,
    chunk_size: int | None = None,
) -> Float[Tensor, ""]:
    r"""Return SigLIP's loss: each of the :math:`n^2` pairs is a question with the answer yes or no.

    .. math:: L = -\frac1n \sum_{i,j} \ln \sigma\bigl(z_{ij} (e^s u_i \cdot v_j + b)\bigr),
        \qquad z_{ij} = 2 [i = j] - 1

    The sum is divided by :math:`n`, not by the number of its terms.

    Args:
        U: Vectors of one modality, normalized by the caller.
        V: Those of the other, in the same order.
        log_scale: :math:`s`; SigLIP starts with :math:`\ln 10`.
        bias: :math:`b`; see :func:`siglip_bias`.
        chunk_size: Rows of ``U`` whose scores are held at a time; all by default.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: If shapes do not fit, or the batch is empty.

    Numerics:
        Computed by ``logsigmoid`` in float32 or better, under autocast as well. In chunks each is
        computed again for its gradient. :math:`\sigma(e^s u \cdot v + b)` is a score of a single
        pair, which a softmax over a batch is not.

    References:
        Zhai et al. 2023, arXiv:2303.15343, algorithm 1.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> U = torch.eye(2, dtype=torch.float64)
        >>> siglip_loss(U, U, math.log(10), -10.0)
        tensor(0.6932, dtype=torch.float64)
    """
    U, V, s = _pairs(U, V, log_scale)
    b = torch.as_tensor(bias, device=U.device, dtype=U.dtype)
    check_shape("bias", b, ())
    if not len(U):
        raise ValueError("the batch is empty: give one pair at least")
    if chunk_size is None:
        return _yes_no(U, V, s, b, 0) / len(U)
    check_count("chunk_size", chunk_size)
    total = U.new_zeros(())
    for first in range(0, len(U), chunk_size):
        some = U[first : first + chunk_size]
        total = total + checkpoint(_yes_no, some, V, s, b, first, use_reentrant=False)
    return total / len(U)


def _yes_no(U: Tensor, V: Tensor, s: Tensor, b: Tensor, first: int) -> Tensor:
    with full_precision(U):
        scores = s.exp() * (U @ V.T) + b
    own = scores.diagonal(first)
    # ln sigma(-x) = ln sigma(x) - x
    return -F.logsigmoid(-scores).sum() - own.sum()


def siglip_bias(n: int) -> float:
    r"""Return the bias at which :func:`siglip_loss` starts lowest where all scores are zero.

    .. math:: b = -\ln(n - 1)

    Of :math:`n` pairs in a row one is true, and :math:`\sigma(b) = 1/n`. The published start is
    :math:`-10`, whatever the batch: right for :math:`n \approx 22\,000`.

    Args:
        n: Pairs in a batch, 2 or more.

    Returns:
        The bias.

    Raises:
        ValueError: If there are fewer than two.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> round(siglip_bias(4), 4)
        -1.0986
    """
    check_count("n", n, low=2)
    return -math.log(n - 1)


class DualEncoder(nn.Module):
    r"""Linear maps from the features of two towers into one space, with a learned scale.

    .. math:: u = \frac{x W_x}{\lVert x W_x \rVert}, \qquad v = \frac{y W_y}{\lVert y W_y \rVert}

    Args:
        first: Width of the features of the first tower.
        second: Width of those of the second.
        dim: Width of the common space.
        temperature: One over the scale at the start.
        bias: The bias of SigLIP's loss at the start; for CLIP's it is not used.
        generator: Source of the maps.

    Attributes:
        log_scale: The logarithm of the scale, learned.
        bias: The bias of SigLIP, learned.

    Raises:
        ValueError: If a size is below 1, or the temperature is not positive.

    References:
        Radford et al. 2021, arXiv:2103.00020, sec. 2.3-2.5.

    Book: :doc:`/book/knowledge/multimodal`

    Example:
        >>> model = DualEncoder(5, 7, dim=3, generator=torch.Generator().manual_seed(0))
        >>> U, V = model(torch.ones(2, 5), torch.ones(2, 7))
        >>> U.norm(dim=1)
        tensor([1., 1.], grad_fn=<LinalgVectorNormBackward0>)
    """

    def __init__(
        self,
        first: int,
        second: int,
        *,
        dim: int,
        temperature: float = 0.07,
        bias: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        for name, size in (("first", first), ("second", second), ("dim", dim)):
            check_count(name, size)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.first = nn.Parameter(_drawn(first, dim, generator))
        self.second = nn.Parameter(_drawn(second, dim, generator))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(
        self, x: Float[Tensor, "*batch first"], y: Float[Tensor, "*others second"]
    ) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*others dim"]]:
        """Map both kinds of features into the common space.

        Args:
            x: Features of the first tower.
            y: Features of the second.

        Returns:
            Vectors of length 1. A zero vector stays zero.
        """
        return unit(x @ self.first), unit(y @ self.second)

    @torch.no_grad()
    def limit_(self, scale: float = 100.0) -> None:
        """Lower the learned scale to a bound if it has passed it; call it after each step.

        What is limited is the parameter. To limit its value inside of the loss would make the
        gradient zero there, and the scale would never come back.

        Args:
            scale: The largest scale, positive; 100 in CLIP.

        Raises:
            ValueError: If the scale is not positive.
        """
        check_in_range("scale", scale, low=0.0, open_low=True)
        self.log_scale.clamp_(max=math.log(scale))


def unit(x: Tensor) -> Tensor:
    """Rows of length 1. In half precision their lengths could pass 65,504, or be 0 / 0."""
    return F.normalize(wide(x), dim=-1).to(x.dtype)


def _drawn(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    # Drawn where the generator lives, in float64, so that all devices start alike.
    drawn = torch.randn(rows, columns, generator=generator, device=generator.device)
    return drawn / math.sqrt(rows)


def _pairs(U: Tensor, V: Tensor, log_scale: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    check_shape("U", U, (None, None))
    check_same_shape("U", U, "V", V)
    check_floating("U", U)
    check_floating("V", V)
    U, V = wide(U), wide(V)
    s = torch.as_tensor(log_scale, device=U.device, dtype=U.dtype)
    check_shape("log_scale", s, ())
    return U, V, s


def _world(across: bool) -> int:
    if not across:
        return 1
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("across asks for a group of processes: start one, or leave it out")
    return dist.get_world_size()


class _Chunked(torch.autograd.Function):
    """The loss and its gradient, some rows of the scores at a time, over all processes."""

    @staticmethod
    def forward(ctx: Any, U: Tensor, V: Tensor, s: Tensor, chunk_size: int, across: bool) -> Tensor:
        n = len(U)
        world = _world(across)
        first = dist.get_rank() * n if world > 1 else 0
        everyone = _gather(V, world)
        queries = s.exp() * U
        rows = []
        top = everyone.new_full((len(everyone),), -math.inf)
        below = torch.zeros_like(top)
        for part in torch.split(queries, chunk_size):
            S = part @ everyone.T
            row = S.amax(1, keepdim=True)
            column = torch.maximum(top, S.amax(0))
            rows.append(row[:, 0] + (S - row).exp_().sum(1).log())
            below = below * (top - column).exp() + S.sub_(column).exp_().sum(0)
            top = column
        columns = top + below.log()
        if world > 1:  # each process has seen its own rows of every column
            columns = torch.logsumexp(_gather(columns[None], world), 0)
        own = (queries * V).sum(1)
        row_lse = torch.cat(rows)
        sums = (row_lse + columns[first : first + n] - 2 * own).sum() / 2
        if world > 1:
            dist.all_reduce(sums)
        ctx.save_for_backward(U, everyone, s, row_lse, columns)
        ctx.sizes = chunk_size, first, world
        return sums / (n * world)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with full_precision(grads[0]):
            return _Chunked.slopes(ctx, grads[0])

    @staticmethod
    def slopes(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        U, everyone, s, row_lse, columns = ctx.saved_tensors
        chunk_size, first, world = ctx.sizes
        n, scale = len(U), s.exp()
        dU, dV = torch.empty_like(U), torch.zeros_like(everyone)
        ids = torch.arange(n, device=U.device)
        for place in range(0, n, chunk_size):
            some = slice(place, place + chunk_size)
            part = scale * U[some]
            S = part @ everyone.T
            G = (S - row_lse[some, None]).exp_()
            G += S.sub_(columns).exp_()
            G /= 2
            here = ids[some]
            G[here - place, here + first] -= 1
            dU[some] = G @ everyone
            dV.addmm_(G.T, part)
        ds = (dU * U).sum() * scale
        dU *= scale
        if world > 1:
            dist.all_reduce(dV)
            dV = dV[first : first + n]
        # The mean over processes divides by their number, and so does the loss.
        factor = grad * world / (n * world)
        return factor * dU, factor * dV, factor * ds, None, None


def _gather(x: Tensor, world: int) -> Tensor:
    if world == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
