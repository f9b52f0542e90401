"""Concept erasure beside the package of its authors."""

from collections.abc import Iterator

import torch

from benchmarks._pair import Pair, Side, close
from companion.trust.debiasing import leace, one_hot

ROWS, DIM = 100_000, 768


def _rows(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, DIM, generator=g)
    labels = torch.randint(0, 2, (ROWS,), generator=g)
    x[:, :5] += labels[:, None]
    return x.to(device), labels.to(device)


def _ours(device: torch.device) -> Side:
    x, labels = _rows(device)

    def run() -> torch.Tensor:
        return leace(x, labels)(x[:1000])

    return run


def _theirs(device: torch.device) -> Side:
    from concept_erasure import LeaceFitter

    x, labels = _rows(device)

    def run() -> torch.Tensor:
        # Its defaults shrink the covariance. One column says all of two classes: the second one
        # would add a direction of rounding errors, which its absolute threshold keeps.
        z = one_hot(labels, 2)[:, :1]
        fitter = LeaceFitter.fit(x, z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-6)
        return fitter.eraser(x[:1000])

    return run


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    yield Pair(
        name="debiasing/leace",
        task=f"LEACE of two classes, {ROWS:,} vectors of {DIM} numbers, float32",
        peer="concept_erasure.LeaceFitter",
        ours=_ours,
        theirs=_theirs,
        same=close(1e-3),
        needs=["concept_erasure"],
        speed=1.0,
        rounds=4,
    )
