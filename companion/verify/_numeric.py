"""Equality with an oracle, inequalities, and means by Monte Carlo."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from companion.verify._compare import (
    as_tensor,
    mutant_value,
    reject_mutants,
    relative_error,
)
from companion.verify._independence import (
    refuse_library_functions,
    require_independent,
    watch,
)
from companion.verify._inputs import check_generic, check_unchanged, snapshot
from companion.verify._record import Verification, VerificationError, check_label, emit

__all__ = ["bound", "equal", "expectation"]

# Rounding of float64, with three digits left for the conditioning.
_TOL = 1e-12
# The widest tolerance: an error of one in a thousand would still be seen.
_MOST = 5e-4
# A tolerance may exceed the error that was seen by this factor, for other machines' rounding.
_MARGIN = 1000.0
# With attained samples a bound is known to this fraction.
_ATTAINED = 1e-6
# Rounding of the two sides of a bound, relative to their magnitude.
_ROUNDING = 1e-12


def equal(
    label: str,
    claim: Callable[..., Any],
    oracles: Mapping[str, Callable[..., Any]],
    inputs: Mapping[str, Any],
    *,
    mutants: Mapping[str, Callable[..., Any]],
    tol: float = 1e-12,
    symmetric: bool = False,
) -> Verification:
    """Verify that the claim and every oracle give the same numbers, by ways of their own.

    No oracle may go through a function of the library, or of the page, that the claim goes through
    as well: a mistake there would be on both sides. What the equation leaves open, such as an
    arbitrary function, goes in as one of the inputs.

    Args:
        label: Label of the equation.
        claim: What the equation claims, called with the inputs as keywords.
        oracles: Independent computations of the same value: a naive definition, a closed form,
            another library. Named, and called in the same way.
        inputs: Names and values. Tensors, numbers and lists of numbers must be generic.
        mutants: Names and wrong versions of the claim, at least one. Each must run and give
            finite numbers in the shape of the claim.
        tol: Largest accepted deviation, relative to the largest magnitude. Above the default it
            must be needed: the deviation has to come within a factor of 1000 of it.
        symmetric: Declares a symmetric result, which waives the transpose among the mutants.

    Returns:
        The record.

    Raises:
        VerificationError: If an oracle disagrees, shares code with the claim, an input hides
            mistakes, or a mutant survives.

    Example:
        >>> from companion.verify import generic
        >>> x = generic(5, generator=torch.Generator().manual_seed(0))
        >>> record = equal(
        ...     "eq:mean", lambda x: x.sum() / 5, {"torch": lambda x: x.mean()}, {"x": x},
        ...     mutants={"sum": lambda x: x.sum()},
        ... )  # doctest: +ELLIPSIS
        ✓ eq:mean · equality by torch · ... · ... mutants rejected
    """
    check_label(label)
    if not oracles:
        raise VerificationError(f"{label}: give at least one oracle")
    if not 0 < tol <= _MOST:
        raise ValueError(f"tol must lie in (0, {_MOST:g}], got {tol}")
    check_generic(label, inputs)
    before = snapshot(inputs)
    refuse_library_functions(label, inputs)
    by_claim = watch(claim, inputs)
    claimed = as_tensor(label, "the claim", by_claim.value)
    references = {}
    errors = {}
    for name, oracle in oracles.items():
        by_oracle = watch(oracle, inputs)
        require_independent(label, by_claim, f"the oracle {name!r}", by_oracle)
        reference = as_tensor(label, name, by_oracle.value)
        references[name] = (reference, tol)
        errors[name] = relative_error(claimed, reference)
        if not errors[name] <= tol:
            raise VerificationError(
                f"{label}: the claim, of shape {tuple(claimed.shape)}, differs from {name}, of "
                f"shape {tuple(reference.shape)}, by {errors[name]:.1e} (relative), more than "
                f"{tol:.0e}"
            )
    check_unchanged(label, inputs, before)
    if tol > _TOL and max(errors.values()) < tol / _MARGIN:
        raise VerificationError(
            f"{label}: the tolerance {tol:.0e} is wider than it has to be, the largest error is "
            f"{max(errors.values()):.1e}. A wide tolerance lets wrong claims pass."
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
    attained: Sequence[tuple[Any, ...]] = (),
    slack: float = 0.01,
    strict: bool = False,
) -> Verification:
    r"""Verify an inequality on samples, and that no slightly tighter one holds on them.

    A bound that the samples do not come near says little: a looser or a tighter one would pass as
    well. So a tighter one must fail. With :math:`\ell_i \le r_i` on samples :math:`i`, the
    right side is tightened to :math:`r_i - s\,(r_i - \min_j \ell_j)` with the slack :math:`s`,
    and the left side to :math:`\ell_i + s\,(\max_j r_j - \ell_i)`. Some sample must violate each
    of the two. Measured from the ends of the other side in this way, neither an offset common to
    both sides nor a point where both vanish makes a loose constant look tight. A side that is
    the same at every sample is the constant in question, and it alone is tightened.

    Both sides may be tensors of one shape, the same at every sample. Then each entry is a claim
    of its own, and is held to all of this. Many points of one claim are many samples.

    Args:
        label: Label of the equation.
        lhs: The smaller side, called with the entries of a sample.
        rhs: The larger side, of the same shape.
        samples: At least three, among them some that come near equality.
        mutants: Names and wrong versions of the larger side. Each must be violated by a sample.
        attained: Samples at which the claim is that both sides are equal. There they must agree
            up to rounding, and the slack is 1e-6. They count as samples.
        slack: The amount by which the sides are tightened, at most 0.05.
        strict: Whether equality itself violates the claim.

    Returns:
        The record. Its error is the smallest slack that the samples would have allowed.

    Raises:
        VerificationError: If a sample violates the bound, or the check could not have failed.

    Example:
        >>> samples = [(torch.tensor(x),) for x in (0.5, 1.05, 1.1, 3.0)]
        >>> record = bound("eq:log", torch.log, lambda x: x - 1, samples)
        ✓ eq:log · bound by 4 samples · smallest gap 2e-03 · 3 mutants rejected
    """
    check_label(label)
    samples = [*samples, *attained]
    if len(samples) < 3:
        raise VerificationError(f"{label}: give at least three samples, got {len(samples)}")
    if not 0 < slack <= 0.05:
        raise ValueError(f"slack must lie in (0, 0.05], got {slack}")
    if strict and attained:
        raise ValueError("a strict bound is not attained")
    left, right, shapes = _sides(label, lhs, rhs, samples)
    gap = right - left
    rounding = _ROUNDING * torch.maximum(left.abs(), right.abs())
    violated = gap <= rounding if strict else gap < -rounding
    if bool(violated.any()):
        worst = float(-gap.min())
        raise VerificationError(
            f"{label}: violated at {int(violated.sum())} of {gap.numel()} points, by up to "
            f"{worst:.1e}"
        )
    if attained:
        slack = _ATTAINED
        off = (gap > rounding)[-len(attained) :].any(1)
        if bool(off.any()):
            raise VerificationError(
                f"{label}: claimed to be attained, but at {int(off.sum())} of {len(attained)} such "
                f"samples the sides differ, by up to {float(gap[-len(attained) :].max()):.1e}"
            )
    spread = torch.maximum(right.amax(0) - left.amin(0), rounding.amax(0))
    if bool((gap.amax(0) < 1e-6 * spread).any()):
        raise VerificationError(
            f"{label}: both sides are equal at every sample, so the flipped bound would pass. "
            "Add a sample away from equality, or claim an equality."
        )
    moves = {"right": _varies(left, spread), "left": _varies(right, spread)}
    if not bool((moves["right"] | moves["left"]).all()):
        raise VerificationError(f"{label}: both sides are the same at every sample")
    room = {"right": right - left.amin(0), "left": right.amax(0) - left}
    closest, rejected = 0.0, ["flipped"]
    for side, counts in moves.items():
        if not bool(counts.any()):
            continue
        # Room within rounding of zero is a common zero of both sides.
        ratio = torch.where(room[side] > 1e-9 * spread, gap.clamp(min=0) / room[side], torch.inf)
        least = float(ratio.amin(0)[counts].max())
        if not least < slack:
            raise VerificationError(
                f"{label}: the bound is flat here. With its {side} side tightened by {slack:g} no "
                f"sample violates it in some entry; that takes {least:.1e}. So a wrong constant "
                "would pass. Add samples near equality that are no common zero of both sides."
            )
        closest = max(closest, least)
        rejected.append(f"{side} side tightened by {slack:g}")
    for name, mutant in (mutants or {}).items():
        wrong = torch.stack(
            [
                mutant_value(label, name, partial(mutant, *sample), shape=shape).reshape(-1)
                for sample, shape in zip(samples, shapes, strict=True)
            ]
        )
        if not bool((wrong - left < -_ROUNDING * torch.maximum(left.abs(), wrong.abs())).any()):
            raise VerificationError(
                f"{label}: no sample violates the wrong bound {name!r}. Add one that does."
            )
        rejected.append(name)
    return emit(
        label=label,
        kind="bound",
        routes=[(f"{len(samples)} samples", closest)],
        tolerance=slack,
        mutants=rejected,
        points=len(samples),
        unit="relative gap",
    )


def _sides(
    label: str,
    lhs: Callable[..., Any],
    rhs: Callable[..., Any],
    samples: Sequence[tuple[Any, ...]],
) -> tuple[Tensor, Tensor, list[torch.Size]]:
    """Evaluate both sides: a row for each sample, a column for each entry; and the shapes."""
    rows: list[tuple[Tensor, Tensor]] = []
    shapes: list[torch.Size] = []
    for sample in samples:
        small = as_tensor(label, "the left side", lhs(*sample))
        large = as_tensor(label, "the right side", rhs(*sample))
        if small.shape != large.shape:
            raise VerificationError(
                f"{label}: the left side has shape {tuple(small.shape)}, the right "
                f"{tuple(large.shape)}. Give both one shape: broadcasting compares what no one "
                "claimed."
            )
        if not bool(torch.isfinite(small).all() & torch.isfinite(large).all()):
            raise VerificationError(f"{label}: a side is NaN or infinite")
        if rows and small.numel() != rows[0][0].numel():
            raise VerificationError(
                f"{label}: the sides have {small.numel()} entries at one sample and "
                f"{rows[0][0].numel()} at another. Each entry is a claim of its own; where they "
                "are many points of one claim, make a sample of each."
            )
        rows.append((small.reshape(-1), large.reshape(-1)))
        shapes.append(small.shape)
    return torch.stack([a for a, _ in rows]), torch.stack([b for _, b in rows]), shapes


def _varies(side: Tensor, spread: Tensor) -> Tensor:
    """Tell in which entries a side differs between samples by more than rounding."""
    return side.amax(0) - side.amin(0) > 1e-9 * spread


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
    samples must also be many enough: a claim that is off by the resolution in one component, any
    one, has to be rejected at the same ``z``. With z = 5 a right claim fails in fewer than one of
    a million runs for one component; the generator makes the run repeatable.

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
    error: Tensor = deviation / n**0.5
    # The spread of a constant is rounding.
    constant = ~(deviation > 1e-12 * mean.abs())
    if not bool(torch.isfinite(mean).all()) or bool(constant.any()):
        raise VerificationError(
            f"{label}: component {int(constant.int().argmax())} of the samples is constant or not "
            "finite, so its mean is no matter of chance"
        )
    claimed = _claimed(label, "the claim", value, mean)

    def distances(wrong: Tensor) -> Tensor:
        return ((mean - wrong) / error).abs()

    off = float(distances(claimed).max())
    if not off <= z:
        raise VerificationError(
            f"{label}: the sample mean lies {off:.1f} standard errors from the claim, "
            f"more than {z:g}"
        )
    # A claim within rounding of zero has no relative error.
    zero = claimed.abs() < 1e-9 * deviation
    wrong = {}
    for sign, factor in (("+", resolution), ("-", -resolution)):
        name = f"{sign}{resolution:.0%}" + (" in each component" if len(claimed) > 1 else "")
        wrong[name] = torch.where(zero, factor * deviation, claimed * (1 + factor))
        reached = distances(wrong[name])
        if bool((reached <= z).any()):
            raise VerificationError(
                f"{label}: {n} samples cannot tell the claim from the wrong claim {name!r}, which "
                f"lies {float(reached.min()):.1f} standard errors off in component "
                f"{int(reached.argmin())}. Draw more samples."
            )
    # In every component that is not zero the next two are further off than the two above.
    if not bool(zero.all()):
        wrong |= {"negated": -claimed, "doubled": 2 * claimed}
    for name, mutant in mutants.items():
        wrong[name] = mutant_value(label, name, mutant if callable(mutant) else _constant(mutant))
        wrong[name] = wrong[name].reshape(-1)
        if wrong[name].shape != mean.shape:
            raise VerificationError(
                f"{label}: mutant {name!r} has {len(wrong[name])} components, but the samples "
                f"have {len(mean)}"
            )
        if float(distances(wrong[name]).max()) <= z:
            raise VerificationError(
                f"{label}: {n} samples cannot tell the claim from the wrong claim {name!r}, which "
                f"lies {float(distances(wrong[name]).max()):.1f} standard errors off. Draw more "
                "samples."
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


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _claimed(label: str, who: str, value: Any, mean: Tensor) -> Tensor:
    tensor = as_tensor(label, who, value() if callable(value) else value).reshape(-1)
    if tensor.shape != mean.shape:
        raise VerificationError(
            f"{label}: {who} has {len(tensor)} components, but the samples have {len(mean)}"
        )
    return tensor
