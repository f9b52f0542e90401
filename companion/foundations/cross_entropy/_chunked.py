r"""The loss of a language model's head, without the matrix of its logits.

The gradient of the mean loss with respect to the logits is :math:`(p - y)/N`. It is known as soon
as the logits are, and what comes later in the backward pass can only scale it, since the loss is a
scalar. So one pass over the tokens, a chunk at a time, can compute the loss and both gradients and
throw the chunk's logits away.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_floating, check_in_range, check_shape, wide, wide_dtype
from companion.foundations.cross_entropy._loss import (
    IGNORE,
    check_reduction,
    check_targets,
    cross_entropy,
)
from companion.foundations.cross_entropy._softmax import logsumexp

__all__ = ["chunked_cross_entropy", "linear_cross_entropy"]


def linear_cross_entropy(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "d vocab"],
    targets: Integer[Tensor, "*batch"],
    *,
    label_smoothing: float = 0.0,
    z_weight: float = 0.0,
    ignore_index: int = IGNORE,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    r"""Return the loss of an output head: the plain definition.

    .. math:: L = \frac1N \sum_n \big(\mathrm{CE}(y_n, h_n W_U)
        + \lambda_z \, \mathrm{lse}(h_n W_U)^2 \big)

    Args:
        hidden: Last hidden states :math:`h`, one row a token.
        weight: Unembedding :math:`W_U`. For a ``nn.Linear`` or a tied embedding pass
            ``weight.T``.
        targets: Ids of the next tokens, ``ignore_index`` where a row does not count.
        label_smoothing: As in :func:`companion.foundations.cross_entropy.cross_entropy`.
        z_weight: Weight :math:`\lambda_z \ge 0` of the z-loss.
        ignore_index: The id of rows that do not count.
        reduction: ``"mean"`` over the rows that count, or ``"sum"``.

    Returns:
        The loss in nats, float32, or float64 for float64 inputs. 0 where no row counts.

    Raises:
        ValueError: If shapes, dtypes, ids or settings do not fit.

    Numerics:
        Holds several matrices of (tokens × vocabulary) at once. It is the oracle of
        :func:`chunked_cross_entropy`, which holds a chunk of rows of one.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> linear_cross_entropy(torch.ones(2, 3), torch.zeros(3, 5), torch.tensor([4, 0]))
        tensor(1.6094)
    """
    _check(hidden, weight, targets, label_smoothing, z_weight, ignore_index, reduction)
    logits = wide(hidden @ weight)
    loss = cross_entropy(
        logits,
        targets,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    if z_weight == 0:
        return loss
    counts = targets.long() != ignore_index
    penalty = torch.where(counts, logsumexp(logits) ** 2, 0.0).sum()
    return loss + z_weight * (
        penalty / counts.sum().clamp_min(1) if reduction == "mean" else penalty
    )


def chunked_cross_entropy(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "d vocab"],
    targets: Integer[Tensor, "*batch"],
    *,
    chunk_size: int | None = None,
    label_smoothing: float = 0.0,
    z_weight: float = 0.0,
    ignore_index: int = IGNORE,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    r"""Return the loss of an output head without ever holding all its logits.

    Equal, up to rounding, to :func:`linear_cross_entropy` in value and in both gradients, which
    for ``"sum"`` and without label smoothing and z-loss are

    .. math:: dW_U = h^\top (p - y), \qquad dh = (p - y)\, W_U^\top

    Args:
        hidden: Last hidden states :math:`h`, one row a token.
        weight: Unembedding :math:`W_U`. For a ``nn.Linear`` or a tied embedding pass
            ``weight.T``; the view is used as it is, and its gradient comes back in its layout.
        targets: Ids of the next tokens, ``ignore_index`` where a row does not count.
        chunk_size: Tokens whose logits are held at a time, 1 or more. By default half of ``d``,
            kept within 128 and 1024, so that a chunk of logits costs about half of the gradient
            of the weight, which must be held anyway.
        label_smoothing: As in :func:`companion.foundations.cross_entropy.cross_entropy`.
        z_weight: Weight :math:`\lambda_z \ge 0` of the z-loss.
        ignore_index: The id of rows that do not count.
        reduction: ``"mean"`` over the rows that count, or ``"sum"``. There is no ``"none"``: the
            gradients are computed in the forward pass, which is possible only because the
            gradient that arrives later is a single number.

    Returns:
        The loss in nats, float32, or float64 for float64 inputs. 0 where no row counts.

    Raises:
        ValueError: If shapes, dtypes, ids or settings do not fit.
        RuntimeError: If the gradient is differentiated again, or under ``torch.func.vmap`` and
            forward-mode transforms: for these use :func:`linear_cross_entropy`.

    Numerics:
        Forward and backward together are three matrix products of :math:`2 N d |V|` operations,
        as in the plain version: nothing is computed twice. Where no gradient is wanted the two
        products for gradients are left out. Logits are formed in the dtype of the inputs,
        everything after them is computed in float32 or better, and the gradient of the weight is
        summed over chunks in float32 or better. Under autocast the inputs are first cast, as a
        matrix product would do.

    References:
        The idea of computing the gradients in the forward pass follows P.-L. Hsu et al., "Liger
        Kernel", arXiv:2410.10989, section 3.2; this version is plain PyTorch and scales in the
        backward pass without writing into what it saved. For a kernel that writes no logits to
        the main memory of the device see E. Wijmans et al., arXiv:2411.09009.

    Book: :doc:`/book/foundations/cross_entropy`

    Example:
        >>> chunked_cross_entropy(torch.ones(2, 3), torch.zeros(3, 5), torch.tensor([4, 0]))
        tensor(1.6094)
    """
    _check(hidden, weight, targets, label_smoothing, z_weight, ignore_index, reduction)
    d = weight.shape[0]
    if chunk_size is None:
        chunk_size = min(max(d // 2, 128), 1024)
    elif chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, got {chunk_size}")
    if _autocast(hidden):
        # What a matrix product would do, float64 left alone as there.
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden = hidden if hidden.dtype == torch.float64 else hidden.to(dtype)
        weight = weight if weight.dtype == torch.float64 else weight.to(dtype)
    wants = torch.is_grad_enabled()
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.reshape(-1, d),
        weight,
        targets.reshape(-1).long(),
        wants and hidden.requires_grad,
        wants and weight.requires_grad,
        chunk_size,
        label_smoothing,
        z_weight,
        ignore_index,
        reduction,
    )[0]
    return loss


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float,
    z_weight: float,
    ignore_index: int,
    reduction: str,
) -> None:
    check_floating("hidden", hidden)
    check_floating("weight", weight)
    check_shape("weight", weight, (None, None))
    if hidden.ndim == 0 or hidden.shape[-1] != weight.shape[0]:
        hint = ": pass weight.T" if hidden.shape[-1:] == weight.shape[1:] else ""
        raise ValueError(
            f"hidden {tuple(hidden.shape)} @ weight {tuple(weight.shape)} does not fit{hint}"
        )
    # Autocast casts both, but leaves float64 alone.
    wide_one = torch.float64 in (hidden.dtype, weight.dtype)
    if hidden.dtype != weight.dtype and (wide_one or not _autocast(hidden)):
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}: convert one")
    if targets.is_floating_point():
        raise ValueError(
            f"targets must be ids, got {targets.dtype}: soft targets are a matrix of the size "
            "that this function avoids, use cross_entropy on the logits"
        )
    check_in_range("label_smoothing", label_smoothing, low=0.0, high=1.0)
    check_in_range("z_weight", z_weight, low=0.0)
    check_reduction(reduction, ("mean", "sum"))
    check_targets(targets, tuple(hidden.shape[:-1]), weight.shape[1], ignore_index)


def _autocast(tensor: Tensor) -> bool:
    # meta tensors have no autocast to ask for.
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and unscaled gradients in the forward pass, scaling in the backward pass."""

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        wants_hidden: bool,
        wants_weight: bool,
        chunk_size: int,
        label_smoothing: float,
        z_weight: float,
        ignore_index: int,
        reduction: str,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        high = wide_dtype(hidden.dtype)
        lowest = math.log(torch.finfo(high).tiny)
        vocab = weight.shape[1]
        counts = targets != ignore_index
        total = torch.zeros((), dtype=high, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        # The gradient of a transposed view is summed in the layout of what was transposed, so
        # that it can become the gradient of that without a copy.
        flipped = weight.stride(0) < weight.stride(1)
        shape = (vocab, weight.shape[0]) if flipped else tuple(weight.shape)
        d_weight = weight.new_zeros(shape, dtype=high) if wants_weight else None
        for start in range(0, hidden.shape[0], chunk_size):
            rows = slice(start, start + chunk_size)
            h, counted = hidden[rows], counts[rows].unsqueeze(1)
            ids = torch.where(counts[rows], targets[rows], 0).unsqueeze(1)
            z = (h @ weight).to(high)  # (chunk, vocab): the one large temporary
            score = (1 - label_smoothing) * z.gather(1, ids)
            if label_smoothing > 0:
                score = score + label_smoothing * z.mean(1, keepdim=True)
            # From here on the storage of z is reused: shifted logits, weights, gradient.
            shift = z.amax(1, keepdim=True)
            # Below the smallest normal number exp is up to 80 times slower on a CPU. Such weights
            # are nothing beside the largest one, which is 1.
            z = z.sub_(shift).clamp_(min=lowest).exp_()
            norm = z.sum(1, keepdim=True)
            lse = shift + norm.log()
            losses = lse - score
            if z_weight > 0:
                losses = losses + z_weight * lse**2
            total += torch.where(counted, losses, 0.0).sum()
            if d_hidden is None and d_weight is None:
                del z
                continue
            # (1 + 2 λ lse) p - y, row by row. Not divided by N yet, which would underflow in half
            # precision.
            factor = (1 + 2 * z_weight * lse) / norm if z_weight > 0 else 1 / norm
            z.mul_(factor)
            if label_smoothing > 0:
                z.sub_(label_smoothing / vocab)
            z.scatter_add_(1, ids, torch.full_like(score, label_smoothing - 1))
            # Last, and not by a factor of 0, since an ignored row may hold an infinity or NaN.
            z.masked_fill_(~counted, 0.0)
            g = z.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[rows] = g @ weight.T
            if d_weight is not None:
                left, right = (g.T, h) if flipped else (h.T, g)
                if g.dtype == high:
                    torch.addmm(d_weight, left, right, out=d_weight)
                else:
                    d_weight += left @ right
                del left, right
            del z, g  # before the next chunk is made
        scale = torch.ones((), dtype=high, device=hidden.device)
        if reduction == "mean":
            scale = scale / counts.sum().clamp_min(1)
        if d_weight is not None and flipped:
            d_weight = d_weight.T
        return total * scale, d_hidden, d_weight, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _, d_hidden, d_weight, scale = output
        ctx.set_materialize_grads(False)  # no zeros in place of gradients of gradients
        ctx.mark_non_differentiable(*(t for t in output[1:] if t is not None))
        ctx.save_for_backward(d_hidden, d_weight, scale, inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 10
        d_hidden, d_weight, scale, hidden, weight = ctx.saved_tensors
        factor = grad * scale
        grads = [
            None if saved is None else (saved * factor).to(like.dtype)
            for saved, like in ((d_hidden, hidden), (d_weight, weight))
        ]
        if torch.is_grad_enabled():  # create_graph=True
            grads = [
                None if g is None else _Final.apply(g, hidden, weight)  # type: ignore[no-untyped-call]
                for g in grads
            ]
        return (*grads, *[None] * 8)


class _Final(torch.autograd.Function):
    """Identity on a first derivative that refuses to be differentiated again.

    The saved gradients carry no graph of their own, so a second derivative would come out as
    zero, silently. This ties them to the inputs they depend on, and speaks up.
    """

    @staticmethod
    def forward(value: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "chunked_cross_entropy can be differentiated once: for second derivatives use "
            "linear_cross_entropy"
        )
