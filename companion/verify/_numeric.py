"""Equality with an oracle, inequalities, and means by Monte Carlo."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.verify._compare import as_tensor, reject_mutants, relative_error
from companion.verify._inputs import check_generic, check_unchanged, snapshot
from companion.verify._record import Verification, VerificationError, check_label, emit

__all__ = ["bound", "equal", "expectation"]


def equal(
    label: str,
    claim: Callable[..., Any],
    oracles: Mapping[str, Callable[..., Any]],
    inputs: Mapping[str, Any],
    *,
    mutants: Mapping[str, Callable[..., Any]],
    tol: float = 1e-10,
    symmetric: bool = False,
) -> Verification:
    """Verify that the claim and every oracle give the same numbers.

    Args:
        label: Label of the equation.
        claim: What the equation claims, called with the inputs as keywords.
        oracles: Independent computations of the same value: a naive definition, a closed form,
            another library. Named, and called in the same way.
        inputs: Names and values. Floating tensors must be generic.
        mutants: Names and wrong versions of the claim, at least one.
        tol: Largest accepted deviation, relative to the largest magnitude.
        symmetric: Declares a symmetric result, which waives the transpose among the mutants.

    Returns:
        The record.

    Raises:
        VerificationError: If an oracle disagrees, an input hides mistakes, or a mutant survives.

    Example:
        >>> from companion.verify import generic
        >>> x = generic(5, generator=torch.Generator().manual_seed(0))
        >>> record = equal(
        ...     "eq:mean", lambda x: x.sum() / 5, {"torch": lambda x: x.mean()}, {"x": x},
        ...     mutants={"sum": lambda x: x.sum()},
        ... )  # doctest: +ELLIPSIS
        ✓ eq:mean · equality by torch · ... · 3 mutants rejected
    """
    check_label(label)
    if not oracles:
        raise VerificationError(f"{label}: give at least one oracle")
    if not 0 < tol <= 1e-3:
        raise ValueError(f"tol must lie in (0, 1e-3], got {tol}")
    check_generic(label, inputs)
    before = snapshot(inputs)
    claimed = as_tensor(label, "the claim", claim(**inputs))
    references = {}
    errors = {}
    for name, oracle in oracles.items():
        reference = as_tensor(label, name, oracle(**inputs))
        references[name] = (reference, tol)
        errors[name] = relative_error(claimed, reference)
        if not errors[name] <= tol:
            raise VerificationError(
                f"{label}: the claim, of shape {tuple(claimed.shape)}, differs from {name}, of "
                f"shape {tuple(reference.shape)}, by {errors[name]:.1e} (relative), more than "
                f"{tol:.0e}"
            )
    rejected = reject_mutants(label, claimed, references, mutants, inputs, symmetric=symmetric)
    check_unchanged(label, inputs, before)
    return emit(
        label=label,
        kind="equality",
        routes=errors.items(),
        tolerance=tol,
        mutants=rejected,
        points=1,
    )


def bound(
    label: str,
    lhs: Callable[..., Any],
    rhs: Callable[..., Any],
    samples: Sequence[tuple[Any, ...]],
    *,
    mutants: Mapping[str, Callable[..., Any]] | None = None,
    slack: float = 0.1,
    strict: bool = False,
) -> Verification:
    """Verify an inequality on samples, and that the samples could have broken it.

    Both sides may be tensors, compared entry by entry. A bound that no sample comes near is flat:
    any looser claim would pass as well. So at least one entry must lie within ``slack`` of
    equality, and one must lie away from it.

    Args:
        label: Label of the equation.
        lhs: The smaller side, called with the entries of a sample.
        rhs: The larger side.
        samples: At least three, among them one that is extremal or nearly so.
        mutants: Names and wrong versions of the larger side. Each must be violated by a sample.
        slack: Relative gap, at most 0.5, that counts as close to equality.
        strict: Whether equality itself violates the claim.

    Returns:
        The record. Its error is the smallest relative gap.

    Raises:
        VerificationError: If a sample violates the bound, or the check could not have failed.

    Example:
        >>> samples = [(torch.tensor(x),) for x in (0.5, 1.1, 3.0)]
        >>> record = bound("eq:log", torch.log, lambda x: x - 1, samples)
        ✓ eq:log · bound by 3 samples · smallest gap 5e-02 · 2 mutants rejected
    """
    check_label(label)
    if len(samples) < 3:
        raise VerificationError(f"{label}: give at least three samples, got {len(samples)}")
    if not 0 < slack <= 0.5:
        raise ValueError(f"slack must lie in (0, 0.5], got {slack}")
    gaps = torch.cat([_gaps(label, lhs(*s), rhs(*s)) for s in samples])
    least = float(gaps.min())
    if least < -1e-12 or (strict and least <= 0):
        count = int((gaps < -1e-12).sum()) if least < -1e-12 else int((gaps <= 0).sum())
        raise VerificationError(
            f"{label}: violated at {count} of {len(gaps)} points, by up to {-least:.1e} (relative)"
        )
    if least > slack:
        raise VerificationError(
            f"{label}: the bound is flat here, no sample comes closer to equality than "
            f"{least:.2f} (relative), so a wrong constant would pass. Add an extremal sample."
        )
    if float(gaps.max()) < 1e-6:
        raise VerificationError(
            f"{label}: both sides are equal at every sample, so the flipped bound would pass. "
            "Add a sample away from equality, or claim an equality."
        )
    rejected = ["flipped", f"right side tightened by {slack:.0%}"]
    for name, mutant in (mutants or {}).items():
        worst = min(float(_gaps(label, lhs(*s), mutant(*s)).min()) for s in samples)
        if worst >= -1e-12:
            raise VerificationError(
                f"{label}: no sample violates the wrong bound {name!r}. Add one that does."
            )
        rejected.append(name)
    return emit(
        label=label,
        kind="bound",
        routes=[(f"{len(samples)} samples", max(least, 0.0))],
        tolerance=slack,
        mutants=rejected,
        points=len(samples),
        unit="relative gap",
    )


def _gaps(label: str, left: Any, right: Any) -> Tensor:
    small, large = as_tensor(label, "the left side", left), as_tensor(label, "the right", right)
    gap = large - small
    if not bool(torch.isfinite(gap).all()):
        raise VerificationError(f"{label}: a side is NaN or infinite")
    scale = torch.maximum(small.abs(), large.abs())
    return torch.where(scale > 0, gap / scale, torch.zeros_like(gap)).reshape(-1)


def expectation(
    label: str,
    estimator: Callable[[int, torch.Generator], Tensor],
    value: Any,
    *,
    n: int,
    generator: torch.Generator,
    mutants: Mapping[str, Any],
    z: float = 5.0,
    resolution: float = 0.05,
) -> Verification:
    """Verify a claimed mean by Monte Carlo.

    The sample mean must lie within ``z`` standard errors of the claim in every component. The
    samples must also be many enough: a claim that is off by the resolution has to be rejected at
    the same ``z``. With z = 5 a right claim fails in fewer than one of a million runs for one
    component; the generator makes the run repeatable.

    Args:
        label: Label of the equation.
        estimator: Draws n independent samples, shape ``(n,)`` or ``(n, k)``, given n and the
            generator.
        value: The claimed mean, a number or shape ``(k,)``, or a function of no argument.
        n: Number of samples.
        generator: The source of randomness.
        mutants: Names and wrong claims, at least one, in the form of ``value``.
        z: Number of standard errors that separates agreement from disagreement, at least 3.
        resolution: Relative error that must be detected, at most 0.2. Where the claim is zero
            it counts in standard deviations of a sample.

    Returns:
        The record. Its error counts standard errors.

    Raises:
        VerificationError: If the claim is off, or the check is too blunt to see that it is.
    """
    check_label(label)
    if z < 3 or not 0 < resolution <= 0.2:
        raise ValueError(
            f"need z >= 3 and 0 < resolution <= 0.2, got z = {z}, resolution = {resolution}"
        )
    if not mutants:
        raise VerificationError(f"{label}: give at least one mutant, a wrong claim of the mean")
    samples = as_tensor(label, "the estimator", estimator(n, generator))
    if samples.shape[0] != n or samples.ndim > 2:
        raise VerificationError(
            f"{label}: the estimator must return ({n},) or ({n}, k), got {tuple(samples.shape)}"
        )
    samples = samples.reshape(n, -1)
    mean, deviation = samples.mean(0), samples.std(0)
    error = deviation / n**0.5
    if not bool(torch.isfinite(mean).all()) or not bool((error > 0).all()):
        raise VerificationError(f"{label}: a component of the samples is constant or not finite")
    claimed = _claimed(label, "the claim", value, mean)

    def distance(wrong: Tensor) -> float:
        return float(((mean - wrong) / error).abs().max())

    off = distance(claimed)
    if not off <= z:
        raise VerificationError(
            f"{label}: the sample mean lies {off:.1f} standard errors from the claim, "
            f"more than {z:g}"
        )
    wrong = {
        f"{sign}{resolution:.0%}": torch.where(
            claimed == 0, factor * deviation, claimed * (1 + factor)
        )
        for sign, factor in (("+", resolution), ("-", -resolution))
    }
    if bool((claimed != 0).any()):
        wrong |= {"negated": -claimed, "doubled": 2 * claimed}
    wrong |= {name: _claimed(label, name, mutant, mean) for name, mutant in mutants.items()}
    for name, mutant in wrong.items():
        if distance(mutant) <= z:
            raise VerificationError(
                f"{label}: {n} samples cannot tell the claim from the wrong claim {name!r}, which "
                f"lies {distance(mutant):.1f} standard errors off. Draw more samples."
            )
    return emit(
        label=label,
        kind="expectation",
        routes=[("Monte Carlo", off)],
        tolerance=z,
        mutants=wrong,
        points=n,
        unit="standard errors",
    )


def _claimed(label: str, who: str, value: Any, mean: Tensor) -> Tensor:
    tensor = as_tensor(label, who, value() if callable(value) else value).reshape(-1)
    if tensor.shape != mean.shape:
        raise VerificationError(
            f"{label}: {who} has {len(tensor)} components, but the samples have {len(mean)}"
        )
    return tensor
