r"""Learning to learn: starts from which a few steps lead far.

Parameters are a dictionary of tensors and a task is a function that maps them to a loss, as
``torch.func.functional_call`` makes one of a module. Nothing is changed in place: neither slow
weights nor buffers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_in_range, rand

__all__ = ["MetaGradient", "SineTasks", "adapt", "maml", "reptile", "sine_tasks"]

Parameters = Mapping[str, Tensor]
Task = Callable[[dict[str, Tensor]], Tensor]


def _gradients(loss: Tensor, at: Sequence[Tensor], *, graph: bool) -> list[Tensor]:
    found = torch.autograd.grad(loss, at, create_graph=graph, allow_unused=True)
    return [
        torch.zeros_like(tensor) if part is None else part
        for part, tensor in zip(found, at, strict=True)
    ]


def _check(parameters: Parameters, lr: float, steps: int) -> None:
    if not parameters:
        raise ValueError("there are no parameters to adapt")
    check_in_range("lr", lr, low=0.0)
    check_count("steps", steps, low=0)


def adapt(
    task: Task,
    parameters: Parameters,
    *,
    lr: float,
    steps: int = 1,
    first_order: bool = False,
) -> dict[str, Tensor]:
    r"""Descend on one task for a few steps: :math:`\theta\leftarrow\theta-\alpha\nabla L`.

    Args:
        task: Maps parameters to the loss of the task's training examples.
        parameters: Where to start. They stay as they are.
        lr: Rate :math:`\alpha` of the inner steps, 0 or above.
        steps: Number of steps; with 0 the parameters are returned.
        first_order: Take the inner gradients as constants, so that a later derivative with
            respect to the start passes through as if the step were a shift.

    Returns:
        Adapted parameters, with a graph back to the start if it requires gradients.

    Raises:
        ValueError: If there are no parameters, or a number is negative.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> adapt(lambda p: (p["t"] ** 2).sum() / 2, {"t": torch.tensor([2.0])}, lr=0.1)
        {'t': tensor([1.8000])}
    """
    _check(parameters, lr, steps)
    wanted = torch.is_grad_enabled() and any(p.requires_grad for p in parameters.values())
    graph = wanted and not first_order
    held = dict(parameters)
    for _ in range(steps):
        with torch.enable_grad():
            # Where no derivative reaches back, each step is a leaf of its own.
            at = held if graph else {k: v.detach().requires_grad_() for k, v in held.items()}
            at = {k: v if v.requires_grad else v.detach().requires_grad_() for k, v in at.items()}
            slopes = _gradients(task(at), list(at.values()), graph=graph)
        held = {
            name: value - lr * slope
            for (name, value), slope in zip(held.items(), slopes, strict=True)
        }
    return held


class MetaGradient(NamedTuple):
    """The loss after adaptation, and its gradient with respect to the start.

    Attributes:
        loss: Loss of the test examples at the adapted parameters.
        gradients: One for each parameter, by name.
    """

    loss: Float[Tensor, ""]
    gradients: dict[str, Float[Tensor, "..."]]


def maml(
    train: Task,
    test: Task,
    parameters: Parameters,
    *,
    lr: float,
    steps: int = 1,
    first_order: bool = False,
) -> MetaGradient:
    r"""Differentiate the loss after adaptation with respect to where the adaptation began.

    After one step, with the Hessian :math:`H` of the training loss at :math:`\theta`,

    .. math:: \nabla_\theta L_{te}(\theta')=\nabla L_{te}(\theta')\,(I-\alpha H),\qquad
        \theta'=\theta-\alpha\nabla L_{tr}(\theta)

    and FOMAML leaves out :math:`H`.

    Args:
        train: Maps parameters to the loss of the task's training examples.
        test: Maps parameters to the loss of its test examples.
        parameters: The start :math:`\theta`.
        lr: Inner rate :math:`\alpha`.
        steps: Inner steps, 0 or more.
        first_order: FOMAML: take :math:`\nabla L_{te}(\theta')` itself.

    Returns:
        Loss and gradients, without a graph. No ``.grad`` is touched.

    Raises:
        ValueError: If there are no parameters, or a number is negative.

    References:
        Finn, Abbeel and Levine 2017, arXiv:1703.03400, eq. 1 and sec. 5.2.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> start = {"t": torch.tensor([2.0])}
        >>> tasks = (lambda p: (p["t"] ** 2).sum() / 2, lambda p: ((p["t"] - 1) ** 2).sum() / 2)
        >>> maml(*tasks, start, lr=0.1).gradients["t"]
        tensor([0.7200])
        >>> maml(*tasks, start, lr=0.1, first_order=True).gradients["t"]
        tensor([0.8000])
    """
    _check(parameters, lr, steps)
    with torch.enable_grad():
        start = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        adapted = adapt(train, start, lr=lr, steps=steps, first_order=first_order)
        loss = test(adapted)
        slopes = _gradients(loss, list(start.values()), graph=False)
    return MetaGradient(loss.detach(), dict(zip(start, slopes, strict=True)))


def reptile(
    batches: Sequence[Task], parameters: Parameters, *, lr: float
) -> dict[str, Float[Tensor, "..."]]:
    r"""Return the direction of Reptile: :math:`(\theta-\theta_k)/\alpha`, the sum of the gradients.

    A step of descent along it moves the start toward where :math:`k` steps of ordinary training
    on the task end. No test examples, no second derivatives.

    Args:
        batches: The loss of each inner step, one or more.
        parameters: The start :math:`\theta`.
        lr: Inner rate :math:`\alpha`, above 0.

    Returns:
        The direction, by name; subtract it, times a rate.

    Raises:
        ValueError: If there are no parameters or batches, or the rate is not above 0.

    References:
        Nichol, Achiam and Schulman 2018, arXiv:1803.02999, algorithm 1 and sec. 5.1.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> square = lambda p: (p["t"] ** 2).sum() / 2
        >>> reptile([square, square], {"t": torch.tensor([2.0])}, lr=0.1)["t"]
        tensor([3.8000])
    """
    if not batches:
        raise ValueError("Reptile needs one batch or more, got none")
    _check(parameters, lr, 1)
    check_in_range("lr", lr, low=0.0, open_low=True)
    held = {name: value.detach() for name, value in parameters.items()}
    totals = {name: torch.zeros_like(value) for name, value in held.items()}
    for batch in batches:
        with torch.enable_grad():
            at = {name: value.requires_grad_() for name, value in held.items()}
            slopes = _gradients(batch(at), list(at.values()), graph=False)
        held = {
            name: value.detach() - lr * slope
            for (name, value), slope in zip(held.items(), slopes, strict=True)
        }
        totals = {
            name: total + slope for (name, total), slope in zip(totals.items(), slopes, strict=True)
        }
    return totals


class SineTasks(NamedTuple):
    r"""Sine waves :math:`y=a\sin(x+\varphi)`, one a row.

    Attributes:
        amplitude: :math:`a`, from 0.1 to 5.
        phase: :math:`\varphi`, from 0 to :math:`\pi`.
    """

    amplitude: Float[Tensor, "tasks 1"]
    phase: Float[Tensor, "tasks 1"]

    def __call__(self, x: Float[Tensor, "tasks points"]) -> Float[Tensor, "tasks points"]:
        """Evaluate each wave at its points."""
        return self.amplitude * (x + self.phase).sin()


def sine_tasks(
    count: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> SineTasks:
    r"""Draw waves of uniform amplitude in [0.1, 5] and uniform phase in [0, π].

    Args:
        count: Number of waves, 1 or more.
        generator: The source of randomness.
        dtype: Floating dtype.

    Returns:
        The waves, to be evaluated at points of [-5, 5].

    Raises:
        ValueError: If the number is below 1.

    References:
        Finn, Abbeel and Levine 2017, arXiv:1703.03400, sec. 5.1.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> waves = sine_tasks(3, generator=torch.Generator().manual_seed(0))
        >>> waves(torch.zeros(3, 7)).shape
        torch.Size([3, 7])
    """
    check_count("count", count)
    amplitude = 0.1 + 4.9 * rand(count, 1, generator=generator, dtype=dtype)
    phase = math.pi * rand(count, 1, generator=generator, dtype=dtype)
    return SineTasks(amplitude, phase)
