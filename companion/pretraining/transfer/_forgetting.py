"""Staying near the start: the diagonal of the Fisher information, and penalties made of it."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from companion.core import check_in_range

__all__ = ["ewc_penalty", "fisher_diagonal"]

Example = TypeVar("Example")


def fisher_diagonal(
    negative_log_likelihood: Callable[[Example], Tensor],
    examples: Iterable[Example],
    parameters: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    r"""Estimate the diagonal of the Fisher information from single examples.

    .. math:: \hat F_i = \frac1N \sum_{n=1}^N
        \left(\frac{\partial}{\partial\theta_i}\big(-\log p_\theta(y_n \mid x_n)\big)\right)^2

    Args:
        negative_log_likelihood: Maps **one** example to the scalar :math:`-\log p_\theta(y\mid
            x)`, in nats, summed over its tokens where it is a text. The gradient of a batch,
            squared, is another thing, and smaller.
        examples: For the Fisher information, :math:`y_n` must be drawn from the model,
            :math:`y_n \sim p_\theta(\cdot \mid x_n)`. With the labels of the data instead, the
            result is the *empirical Fisher*, which is what most implementations of elastic weight
            consolidation use.
        parameters: Tensors :math:`\theta` that require gradients, by name.

    Returns:
        For each name a tensor of entries 0 or more, of the parameter's shape.

    Raises:
        ValueError: If there is no example, or a value is not a scalar.

    Numerics:
        One backward pass for each example, and one copy of the parameters in memory.

    References:
        Kirkpatrick et al. 2017, arXiv:1612.00796, sec. 2. Empirical and true Fisher: Kunstner,
        Balles and Hennig 2019, arXiv:1905.12558.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> mean = torch.tensor(0.0, requires_grad=True)
        >>> fisher_diagonal(lambda y: (y - mean) ** 2 / 2, [1.0, -1.0], {"mean": mean})
        {'mean': tensor(1.)}
    """
    total = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    tensors = list(parameters.values())
    count = 0
    for example in examples:
        loss = negative_log_likelihood(example)
        if loss.ndim != 0:
            raise ValueError(
                f"negative_log_likelihood must return a scalar, got shape {tuple(loss.shape)}"
            )
        for held, grad in zip(
            total.values(),
            torch.autograd.grad(loss, tensors, allow_unused=True),
            strict=True,
        ):
            if grad is not None:
                held.addcmul_(grad, grad)
        count += 1
    if not count:
        raise ValueError("there is no example to estimate the Fisher information from")
    return {name: held / count for name, held in total.items()}


def ewc_penalty(
    parameters: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    fisher: Mapping[str, Tensor] | None,
    *,
    strength: float,
) -> Tensor:
    r"""Penalize the distance from a start, each parameter by its weight.

    .. math:: \frac{\lambda}{2} \sum_i F_i \, (\theta_i - \theta_i^*)^2

    Args:
        parameters: :math:`\theta`, by name.
        start: :math:`\theta^*`, of the same names and shapes, not trained.
        fisher: :math:`F`, of the same names and shapes, entries 0 or more (elastic weight
            consolidation); or ``None`` for ones (L2 to the start, L2-SP).
        strength: :math:`\lambda`, 0 or more.

    Returns:
        A scalar, 0 or more, in the unit of the loss.

    Raises:
        ValueError: If the names differ, there are none, or the strength is negative.

    References:
        Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3; L2-SP: Li, Grandvalet and Davoine 2018,
        arXiv:1802.01483.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> now, old = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.0, 0.0])}
        >>> ewc_penalty(now, old, {"w": torch.tensor([1.0, 0.5])}, strength=2.0)
        tensor(3.)
    """
    check_in_range("strength", strength, low=0.0, open_high=True)
    others = [start] if fisher is None else [start, fisher]
    if not parameters or any(set(other) != set(parameters) for other in others):
        raise ValueError("parameters, start and fisher must have the same names, one or more")
    terms = []
    for name, now in parameters.items():
        moved = now - start[name]
        terms.append((moved * moved if fisher is None else fisher[name] * moved * moved).sum())
    return 0.5 * strength * torch.stack(terms).sum()
