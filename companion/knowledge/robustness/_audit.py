"""Is a model robust, or does it only hide its gradients? A list of checks that need no insight."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, check_in_range
from companion.knowledge.robustness._attacks import (
    Bounds,
    Model,
    _climb,
    accuracy,
    check_request,
    evaluating,
    fgsm,
    pgd,
    random_search,
    surprise,
)
from companion.knowledge.robustness._norms import random_in_ball

__all__ = ["MaskingAudit", "masking_audit"]


@dataclass(frozen=True, kw_only=True)
class MaskingAudit:
    """What an audit has found.

    Attributes:
        accuracies: Accuracy by attack: ``clean``, ``noise`` (uniform in the ball), ``fgsm``,
            ``pgd-K`` for each number of steps, ``search`` (without gradients), ``transfer`` (made
            for another model, if there is one), and ``unbounded`` (a ball as large as the bounds).
        zero_gradients: Share of examples whose gradient is exactly 0.
        findings: What speaks for masked gradients, in words; empty if nothing does. An empty
            list proves no robustness: an attack that was made for the defense may still succeed.
    """

    accuracies: dict[str, float]
    zero_gradients: float
    findings: tuple[str, ...]


def masking_audit(
    model: Model,
    x: Float[Tensor, " batch *shape"],
    y: Integer[Tensor, " batch"],
    *,
    eps: float,
    steps: Sequence[int] = (20, 100),
    queries: int = 300,
    bounds: Bounds = (0.0, 1.0),
    surrogate: Model | None = None,
    slack: float = 0.02,
    chance: float = 0.15,
    generator: torch.Generator,
) -> MaskingAudit:
    """Attack a model in several ways, and report what cannot be if its gradients are honest.

    More steps do not help the model; one step does not beat many; random noise, a search without
    gradients and examples made for another model do not beat a climb along the model's own
    gradients; a ball as large as the world leaves no accuracy; gradients are not exactly 0.

    Args:
        model: Maps examples to logits.
        x: Examples.
        y: Labels.
        eps: Radius by the largest size.
        steps: Numbers of steps of the climbs, growing.
        queries: Queries of the search.
        bounds: Ends between which an example stays.
        surrogate: Another model of the same task, for which examples are made as well.
        slack: By how much accuracy may break an order before it counts as a finding.
        chance: Accuracy under the unbounded attack, and share of gradients of 0, that are allowed.
        generator: The source of randomness.

    Returns:
        Accuracies and findings.

    Raises:
        ValueError: If there are no bounds, no examples, or steps that do not grow.

    References:
        After Athalye, Carlini and Wagner 2018, arXiv:1802.00420, sec. 3.1, and Carlini et al.
        2019, arXiv:1902.06705.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.rand(40, 2, generator=g)
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(1e6 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        >>> y = model(x).argmax(-1)
        >>> audit = masking_audit(model, x, y, eps=0.2, generator=g)  # saturated: gradients of 0
        >>> audit.zero_gradients > 0.9, len(audit.findings) > 0
        (True, True)
    """
    if bounds is None:
        raise ValueError("an audit needs bounds, since it lets the ball grow up to them")
    check_request(x, y, bounds)
    check_in_range("eps", eps, low=0.0, open_low=True)
    check_in_range("slack", slack, low=0.0)
    check_count("queries", queries)
    steps = list(steps)
    if not steps or sorted(set(steps)) != steps:
        raise ValueError(f"steps must grow, got {steps}")
    low, high = bounds

    def climb(radius: float, count: int, of: Model = model) -> Tensor:
        size = 2.5 * radius / count
        return pgd(of, x, y, eps=radius, step=size, steps=count, bounds=bounds, generator=generator)

    noise = random_in_ball(x, eps=eps, norm=math.inf, generator=generator)
    made = {
        "clean": x,
        "noise": (x + noise).clamp(low, high),
        "fgsm": fgsm(model, x, y, eps=eps, bounds=bounds),
        **{f"pgd-{count}": climb(eps, count) for count in steps},
        "search": random_search(
            model, x, y, eps=eps, queries=queries, bounds=bounds, generator=generator
        ),
        "unbounded": climb(high - low, steps[-1]),
    }
    if surrogate is not None:
        made["transfer"] = climb(eps, steps[-1], surrogate)
    found = {name: accuracy(model, points, y) for name, points in made.items()}
    with evaluating(model):
        _, gradient = _climb(model, x, y, surprise)
    zero = float((gradient.flatten(1) == 0).all(1).double().mean())
    return MaskingAudit(
        accuracies=found,
        zero_gradients=zero,
        findings=tuple(_findings(found, zero, steps, slack, chance)),
    )


def _findings(
    found: dict[str, float], zero: float, steps: Sequence[int], slack: float, chance: float
) -> list[str]:
    """What cannot be, in words."""
    climbs = [f"pgd-{count}" for count in steps]
    best = min(found[name] for name in climbs)
    said = []
    order = ["fgsm", *climbs]
    for weaker, stronger in itertools.pairwise(order):
        if found[stronger] > found[weaker] + slack:
            said.append(f"{stronger} leaves more accuracy than {weaker}")
    for name in ("noise", "search", "transfer"):
        if name in found and found[name] < best - slack:
            said.append(f"{name} beats every climb along the model's own gradients")
    if found["unbounded"] > chance:
        said.append("accuracy remains although the ball is as large as the bounds")
    if zero > chance:
        said.append(f"{zero:.0%} of the gradients are exactly 0")
    return said
