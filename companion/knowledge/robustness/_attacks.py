r"""Examples made to be wrong: fast gradients, projected ascent, search without gradients.

A model is anything that maps examples to logits. What is a module is evaluated in evaluation mode,
and left in the modes in which it was found, with the gradients that it had.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import can_read, check_count, check_floating, check_in_range, rand, randint
from companion.knowledge.robustness._norms import (
    check_examples,
    check_norm,
    project,
    random_in_ball,
    steepest,
)

__all__ = ["Normalized", "accuracy", "evaluating", "fgsm", "pgd", "random_search"]

Model = Callable[[Tensor], Tensor]
#: Maps logits and labels to one loss an example.
Loss = Callable[[Tensor, Tensor], Tensor]
Bounds = tuple[float, float] | None
# A normalizer and its inverse leave errors of rounding; what lies further out is in other units.
_SLACK = 1e-4


class Normalized(nn.Module):
    r"""A model that normalizes its own inputs: :math:`f((x-\mu)/s)`.

    Attacks then speak of pixels, :math:`\varepsilon` is in the units of pixels, and nobody
    normalizes twice. A radius of :math:`\varepsilon` in pixels is :math:`\varepsilon/s` after
    normalization.

    Args:
        model: The model of normalized inputs.
        mean: :math:`\mu`, of a shape that broadcasts over an example.
        std: :math:`s`, likewise, above 0.

    Raises:
        ValueError: If a deviation is not above 0.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> model = Normalized(nn.Identity(), torch.tensor(0.5), torch.tensor(0.25))
        >>> model(torch.tensor([[1.0, 0.0]]))
        tensor([[ 2., -2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: Float[Tensor, "..."], std: Float[Tensor, "..."]
    ) -> None:
        super().__init__()
        if can_read(std) and bool((std <= 0).any()):
            raise ValueError(f"std must be above 0, got {float(std.min())}")
        self.model = model
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    def forward(self, x: Float[Tensor, " batch *shape"]) -> Float[Tensor, "batch ..."]:
        """Normalize, then run the model."""
        made: Tensor = self.model((x - self.mean) / self.std)
        return made


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put a model's modules into evaluation mode, and each back into its own mode at the end.

    Args:
        model: A module; another callable is left alone.

    Yields:
        Nothing.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> model = nn.Dropout(0.5)
        >>> with evaluating(model):
        ...     model(torch.ones(3))
        tensor([1., 1., 1.])
        >>> model.training
        True
    """
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def surprise(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example, in nats."""
    return F.cross_entropy(logits, labels.long(), reduction="none")  # fused


def check_request(x: Tensor, y: Tensor, bounds: Bounds) -> None:
    """Refuse labels of another number, and examples in other units than the bounds."""
    check_examples("x", x)
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"y must have one label for each of {len(x)} examples, got {tuple(y.shape)}"
        )
    if bounds is None:
        return
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds must be a low end and a higher one, got {bounds}")
    slack = _SLACK * (high - low)
    if can_read(x) and x.numel() and bool(((x < low - slack) | (x > high + slack)).any()):
        raise ValueError(
            f"x must lie in bounds {bounds}, got {float(x.min()):.4g} to {float(x.max()):.4g}: a "
            "model of normalized inputs owns its normalizer (Normalized), or pass bounds=None"
        )


def _inside(x: Tensor, delta: Tensor, bounds: Bounds) -> Tensor:
    """The changed examples, within the bounds, but for what was outside before."""
    if bounds is None:
        return x + delta
    low, high = bounds
    return (x + delta).clamp(x.clamp_max(low), x.clamp_min(high))


def _box(x: Tensor, eps: float, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Ends of what each entry may be: the cube around an example, within the bounds."""
    if bounds is None:
        return x - eps, x + eps
    low, high = bounds
    # What was outside of the bounds by rounding stays there.
    return (
        torch.maximum(x - eps, x.clamp_max(low)),
        torch.minimum(x + eps, x.clamp_min(high)),
    )


def _climb(model: Model, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """The loss of each example and its gradient; no gradient of any parameter is touched."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        losses = loss(model(point), y)
        (gradient,) = torch.autograd.grad(losses.sum(), point)
    return losses.detach(), gradient


def fgsm(
    model: Model,
    x: Float[Tensor, " batch *shape"],
    y: Integer[Tensor, " batch"],
    *,
    eps: float,
    norm: float = math.inf,
    bounds: Bounds = (0.0, 1.0),
    loss: Loss = surprise,
) -> Float[Tensor, " batch *shape"]:
    r"""Take one step of the fast gradient method: :math:`x+\varepsilon\,s(\nabla_x\ell)`.

    With the largest size as norm, :math:`s` is the sign: FGSM. With the length it is
    :math:`g/\lVert g\rVert_2`: the FGM of texts, on embeddings (see
    :func:`~companion.knowledge.robustness.fgm`).

    Args:
        model: Maps examples to logits, or to whatever the loss takes.
        x: Examples, in the units of ``eps`` and ``bounds``.
        y: Labels.
        eps: Size :math:`\varepsilon` of the step.
        norm: 1, 2 or infinity.
        bounds: Ends between which an example stays, or ``None`` where there are none.
        loss: One number an example; more is worse. By default cross-entropy.

    Returns:
        Changed examples, without a graph. With ``eps=0`` they are ``x``, bit for bit.

    Raises:
        ValueError: If labels do not fit, ``eps`` is negative, or ``x`` lies outside of the bounds
            by more than errors of rounding, as it does when it has been normalized.

    References:
        Goodfellow, Shlens and Szegedy 2015, arXiv:1412.6572, sec. 4.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        >>> fgsm(model, torch.tensor([[0.5, 0.5]]), torch.tensor([0]), eps=0.25)
        tensor([[0.2500, 0.7500]])
    """
    check_request(x, y, bounds)
    check_in_range("eps", eps, low=0.0)
    with evaluating(model):
        _, gradient = _climb(model, x, y, loss)
    return _inside(x.detach(), eps * steepest(gradient, norm=norm), bounds)


def pgd(
    model: Model,
    x: Float[Tensor, " batch *shape"],
    y: Integer[Tensor, " batch"],
    *,
    eps: float,
    step: float,
    steps: int,
    norm: float = math.inf,
    bounds: Bounds = (0.0, 1.0),
    loss: Loss = surprise,
    restarts: int = 1,
    keep: Literal["last", "worst"] = "last",
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch *shape"]:
    r"""Climb the loss inside of a ball: :math:`x\leftarrow\Pi(x+\alpha\,s(\nabla_x\ell))`.

    Args:
        model: Maps examples to logits, or to whatever the loss takes.
        x: Examples, in the units of ``eps`` and ``bounds``.
        y: Labels.
        eps: Radius :math:`\varepsilon` of the ball.
        step: Step :math:`\alpha`. Times ``steps`` it should exceed the diameter of the ball a bit.
        steps: Number of steps, 1 or more.
        norm: 1, 2 or infinity.
        bounds: Ends between which an example stays, or ``None``.
        loss: One number an example; more is worse. By default cross-entropy.
        restarts: How often to begin anew; of each example the worst end is kept.
        keep: Of one climb the last point, or the worst on the way.
        generator: Draws the first point from the ball. Without one, the climb begins at ``x``.

    Returns:
        Changed examples, without a graph. With ``eps=0`` they are ``x``, bit for bit.

    Raises:
        ValueError: As in :func:`fgsm`; if a step or a count is not above 0; if there are restarts,
            all equal without a generator.

    Numerics:
        One pass forward and backward a step; one more forward to compare restarts or to keep the
        worst point. For the largest size, :math:`\Pi` is the nearest point of the ball within the
        bounds. For the other norms it is the nearest of the ball, cut to the bounds: allowed, and
        not always the nearest that is.

    References:
        Madry et al. 2018, arXiv:1706.06083, sec. 2.1.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        >>> pgd(model, torch.tensor([[0.5, 0.9]]), torch.tensor([0]), eps=0.25, step=0.1, steps=4)
        tensor([[0.2500, 1.0000]])
    """
    check_request(x, y, bounds)
    check_norm(norm)
    check_in_range("eps", eps, low=0.0)
    check_in_range("step", step, low=0.0, open_low=True)
    check_count("steps", steps)
    check_count("restarts", restarts)
    if keep not in ("last", "worst"):
        raise ValueError(f"keep must be 'last' or 'worst', got {keep!r}")
    if restarts > 1 and generator is None:
        raise ValueError("restarts without a generator are all the same: pass generator=")
    clean = x.detach()
    best, worst = clean, None
    box = _box(clean, eps, bounds) if norm == math.inf else None
    with evaluating(model):
        for _ in range(restarts):
            point = clean
            if generator is not None:
                start = random_in_ball(clean, eps=eps, norm=norm, generator=generator)
                point = _inside(clean, start, bounds)
            for _ in range(steps):
                losses, gradient = _climb(model, point, y, loss)
                if keep == "worst":
                    best, worst = _worse(best, worst, point, losses)
                moved = torch.add(point, steepest(gradient, norm=norm), alpha=step)
                if box is not None:  # one cut for the cube and the bounds
                    point = moved.clamp_(*box)
                    continue
                point = _inside(clean, project(moved - clean, eps=eps, norm=norm), bounds)
            if keep == "last" and restarts == 1:
                return point
            with torch.no_grad():
                losses = loss(model(point), y)
            best, worst = _worse(best, worst, point, losses)
    return best


def _worse(
    best: Tensor, worst: Tensor | None, point: Tensor, losses: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each example the point with the larger loss so far, and that loss."""
    if worst is None:
        return point, losses
    new = losses > worst
    column = new.view(-1, *[1] * (point.dim() - 1))
    return torch.where(column, point, best), torch.where(new, losses, worst)


def random_search(
    model: Model,
    x: Float[Tensor, " batch *shape"],
    y: Integer[Tensor, " batch"],
    *,
    eps: float,
    queries: int,
    ratio: float = 0.3,
    bounds: Bounds = (0.0, 1.0),
    loss: Loss = surprise,
    generator: torch.Generator,
) -> Float[Tensor, " batch *shape"]:
    r"""Look for a worse example without gradients, at the corners of a cube.

    It begins at a random corner of :math:`\lVert\delta\rVert_\infty\le\varepsilon`. At each query
    some coordinates of the change turn their signs, and the change stays if the loss has grown.
    Such a search should not find more than a good climb along gradients; where it does, the
    gradients lie.

    Args:
        model: Maps examples to logits.
        x: Examples.
        y: Labels.
        eps: Half of the edge of the cube.
        queries: How often the model is asked, 1 or more.
        ratio: Share of coordinates that turn at first. It falls to one coordinate at the end.
        bounds: Ends between which an example stays, or ``None``.
        loss: One number an example; more is worse.
        generator: The source of randomness.

    Returns:
        Changed examples, without a graph.

    Raises:
        ValueError: As in :func:`fgsm`; if the ratio is not in (0, 1].

    References:
        After Andriushchenko et al. 2020, arXiv:1912.00049, whose squares are pixels here.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
        >>> g = torch.Generator().manual_seed(0)
        >>> random_search(model, x, y, eps=0.25, queries=50, generator=g)
        tensor([[0.2500, 0.7500]])
    """
    check_request(x, y, bounds)
    check_in_range("eps", eps, low=0.0)
    check_in_range("ratio", ratio, low=0.0, high=1.0, open_low=True)
    check_count("queries", queries)
    clean, width = x.detach(), x.flatten(1).shape[1]
    there: dict[str, Any] = {"generator": generator, "device": x.device, "dtype": x.dtype}
    signs = torch.where(rand(len(x), width, **there) < 0.5, -1.0, 1.0).to(x.dtype)
    best = _inside(clean, eps * signs.view(x.shape), bounds)
    with evaluating(model), torch.no_grad():
        worst = loss(model(best), y)
        for query in range(1, queries):
            share = ratio * (1 - query / queries)
            turned = rand(len(x), width, **there) < share
            place = randint(0, width, (len(x), 1), generator=generator, device=x.device)
            turned = turned.scatter(1, place, torch.ones_like(place, dtype=torch.bool))
            tried = torch.where(turned, -signs, signs)
            point = _inside(clean, eps * tried.view(x.shape), bounds)
            losses = loss(model(point), y)
            signs = torch.where((losses > worst)[:, None], tried, signs)
            best, worst = _worse(best, worst, point, losses)
    return best


def accuracy(
    model: Model,
    x: Float[Tensor, " batch *shape"],
    y: Integer[Tensor, " batch"],
    *,
    batch_size: int = 1024,
) -> float:
    """Share of examples whose largest logit is that of the label, in evaluation mode.

    An example with a logit that is not a number is answered wrongly.

    Args:
        model: Maps examples to logits.
        x: Examples.
        y: Labels.
        batch_size: How many go through the model at once.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: If there is no example, or labels do not fit.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> accuracy(nn.Identity(), torch.eye(3), torch.tensor([0, 1, 1]))
        0.6666666666666666
    """
    check_request(x, y, None)
    check_floating("x", x)
    check_count("batch_size", batch_size)
    if not len(x):
        raise ValueError("accuracy needs one example or more, got none")
    right = 0
    with evaluating(model), torch.no_grad():
        for start in range(0, len(x), batch_size):
            logits = model(x[start : start + batch_size])
            hit = logits.argmax(-1) == y[start : start + batch_size]
            right += int((hit & ~logits.isnan().any(-1)).sum())
    return right / len(x)
