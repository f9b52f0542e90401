r"""Training with a sparse network from the beginning: connections that move."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import (
    check_count,
    check_in_range,
    check_same_shape,
    rand,
)
from companion.efficiency.sparsity._masks import top_mask

__all__ = ["RigL", "cosine_ratio", "rigl_update"]


def cosine_ratio(step: int, *, end: int, start: float = 0.3) -> float:
    r"""Compute which share of the connections is moved at a step.

    .. math:: f(t) = \frac{f_0}{2}\Big(1 + \cos\frac{\pi t}{T}\Big)

    Args:
        step: :math:`t`.
        end: :math:`T`, from where on nothing moves.
        start: :math:`f_0`.

    Returns:
        The share, 0 from ``end`` on.

    Raises:
        ValueError: If a number is out of range.

    References:
        Evci et al. 2020, arXiv:1911.11134, sec. 3.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> cosine_ratio(0, end=100), cosine_ratio(100, end=100)
        (0.3, 0.0)
    """
    check_count("step", step, low=0)
    check_count("end", end)
    check_in_range("start", start, low=0.0, high=1.0)
    return 0.0 if step >= end else start / 2 * (1 + math.cos(math.pi * step / end))


def rigl_update(
    W: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    *,
    ratio: float,
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    r"""Drop the smallest weights, and grow as many where the gradient is largest.

    Args:
        W: Weights, 0 where the mask is ``False``.
        mask: Which connections there are.
        gradient: Of the loss for **all** weights, also those that are masked.
        ratio: Share of the connections that is dropped, rounded to a number.

    Returns:
        New weights, in which what has grown is 0, and the new mask, with as many connections.
        What was dropped may grow again, as 0, if its gradient is among the largest.

    Raises:
        ValueError: If shapes differ or the share is out of range.

    References:
        Evci et al. 2020, arXiv:1911.11134, algorithm 1.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> W = torch.tensor([3.0, 0.1, 0.0, 0.0])
        >>> gradient = torch.tensor([0.0, 0.0, 1.0, -2.0])
        >>> rigl_update(W, W != 0, gradient, ratio=0.5)
        (tensor([3., 0., 0., 0.]), tensor([ True, False, False,  True]))
    """
    check_same_shape("W", W, "mask", mask)
    check_same_shape("W", W, "gradient", gradient)
    check_in_range("ratio", ratio, low=0.0, high=1.0)
    there = int(mask.sum())
    moved = round(ratio * there)
    size = W.numel()
    stay = top_mask(W.abs().masked_fill(~mask, -1.0), sparsity=(size - there + moved) / size)
    reached = gradient.abs().masked_fill(stay, -1.0)
    grown = top_mask(reached, sparsity=(size - moved) / size)
    return W * stay, stay | grown


class RigL:
    """Keeps weights sparse while they are trained, and moves connections from time to time.

    Call :meth:`after_backward` between ``backward`` and the optimizer's step, and
    :meth:`after_step` after it.

    Args:
        weights: The parameters that are sparse, by name. They are masked at once, in place.
        sparsity: Share of connections that each of them lacks.
        generator: Draws the first masks.
        every: Steps from one move to the next.
        end: Step from which on nothing moves.
        start: Share that moves at first, see :func:`cosine_ratio`. With 0 the masks are
            fixed.

    Attributes:
        masks: By name, ``True`` where there is a connection.

    Raises:
        ValueError: If there are no weights or a number is out of range.

    Numerics:
        The gradient of a step that moves connections is used for the move and not for a step, as
        in the paper. At all other steps the gradient of what is masked is set to 0. After the
        optimizer's step, weights and whatever the optimizer holds of their shape are masked:
        momentum would revive them.

    References:
        Evci et al. 2020, arXiv:1911.11134.

    Book: :doc:`/book/efficiency/sparsity`
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        *,
        sparsity: float,
        generator: torch.Generator,
        every: int = 100,
        end: int = 10_000,
        start: float = 0.3,
    ) -> None:
        check_in_range("sparsity", sparsity, low=0.0, high=1.0, open_high=True)
        check_count("every", every)
        cosine_ratio(0, end=end, start=start)
        if not weights:
            raise ValueError("weights must hold one parameter or more, got none")
        self.weights = dict(weights)
        self.every, self.end, self.start, self.step = every, end, start, 0
        self.masks = {
            name: top_mask(rand(*w.shape, generator=generator, device=w.device), sparsity=sparsity)
            for name, w in self.weights.items()
        }
        self._apply(None)

    @torch.no_grad()
    def after_backward(self) -> bool:
        """Move connections if it is time, or mask the gradients.

        Returns:
            Whether connections have moved. Gradients are 0 then, and the step of the optimizer
            should be left out.

        Raises:
            ValueError: If a weight has no gradient. Nothing is changed.
        """
        if missing := [name for name, w in self.weights.items() if w.grad is None]:
            raise ValueError(f"{missing[0]} has no gradient: call backward first")
        self.step += 1
        ratio = cosine_ratio(self.step, end=self.end, start=self.start)
        moves = self.step % self.every == 0 and ratio > 0
        for name, w in self.weights.items():
            assert w.grad is not None
            if moves:
                new, self.masks[name] = rigl_update(w, self.masks[name], w.grad, ratio=ratio)
                w.copy_(new)
                w.grad.zero_()
            else:
                w.grad.mul_(self.masks[name])
        return moves

    def after_step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Mask the weights and what the optimizer holds for them.

        Args:
            optimizer: The optimizer of the weights, if it has a memory.
        """
        self._apply(optimizer)

    @torch.no_grad()
    def _apply(self, optimizer: torch.optim.Optimizer | None) -> None:
        for name, w in self.weights.items():
            mask = self.masks[name]
            w.mul_(mask)
            held = {} if optimizer is None else optimizer.state.get(w, {})
            for value in held.values():
                if isinstance(value, Tensor) and value.shape == w.shape:
                    value.mul_(mask)
