"""Integrated gradients of MiniLM at one error of completeness, beside captum."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side
from companion.models import minilm
from companion.trust.interpretability import integrated_gradients

TEXT = "In the beginning God created the heaven and the earth, and saw that it was good."
TOLERANCE = 0.02
STEPS = 32


def _task(device: torch.device) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    encoder = minilm()
    model = encoder.model.to(device).requires_grad_(False)
    ids, _ = encoder.tokenize([TEXT])
    x = model.tokens.weight[ids[0].to(device)]
    g = torch.Generator().manual_seed(0)
    way = torch.randn(x.shape[1], generator=g).to(device)

    def score(vectors: Tensor) -> Tensor:
        return model(None, embeddings=vectors).mean(1) @ way

    return score, x, torch.zeros_like(x)


def _fixed(device: torch.device) -> Side:
    score, x, base = _task(device)

    def run() -> Any:
        made = integrated_gradients(score, x, base, steps=STEPS)
        return made.values, made.error

    return run


def _captum(device: torch.device) -> tuple[Callable[[int], tuple[Tensor, float]], float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import IntegratedGradients
    score, x, base = _task(device)
    method = IntegratedGradients(score)

    def attribute(steps: int) -> tuple[Tensor, float]:
        values, delta = method.attribute(
            x[None], base[None], n_steps=steps, return_convergence_delta=True
        )
        return values[0], float(delta)

    return attribute, TOLERANCE


def _captum_fixed(device: torch.device) -> Side:
    attribute, _ = _captum(device)
    return lambda: attribute(STEPS)


def _adaptive(device: torch.device) -> Side:
    score, x, base = _task(device)

    def run() -> Any:
        made = integrated_gradients(score, x, base, tolerance=TOLERANCE)
        return made.values, made.error

    return run


def _captum_doubled(device: torch.device) -> Side:
    attribute, tolerance = _captum(device)

    def run() -> Any:
        steps = 8
        values, error = attribute(steps)
        while abs(error) > tolerance:
            steps *= 2
            values, error = attribute(steps)
        return values, error

    return run


def _one_rule(ours: Any, theirs: Any) -> None:
    assert abs(ours[1] - theirs[1]) < 1e-3, f"errors {ours[1]:.3g} and {theirs[1]:.3g}"
    apart = float((ours[0] - theirs[0]).abs().max())
    assert apart < 1e-4, f"attributions differ by {apart:.3g}"


def _both_within(ours: Any, theirs: Any) -> None:
    for _, error in (ours, theirs):
        assert abs(error) <= TOLERANCE, f"the error of completeness is {error:.3g}"
    apart = float((ours[0] - theirs[0]).sum(1).abs().max())
    assert apart < 0.1, f"attributions of a token differ by {apart:.3g}"


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    yield Pair(
        name="interpretability/integrated_gradients",
        task=f"integrated gradients of MiniLM, {STEPS} nodes of Gauss and Legendre",
        peer="captum.attr.IntegratedGradients, the same nodes",
        ours=_fixed,
        theirs=_captum_fixed,
        same=_one_rule,
        needs=["captum"],
        note="One rule, and nearly all of the time is the model's: no side can win much.",
    )
    yield Pair(
        name="interpretability/to_a_tolerance",
        task=f"the same to an error of completeness of {TOLERANCE} at most",
        peer="captum, with 8 steps and twice as many until its delta is small",
        ours=_adaptive,
        theirs=_captum_doubled,
        same=_both_within,
        needs=["captum"],
        speed=1.0,
        note="A reader who knew that 32 steps suffice would be faster than either.",
    )
