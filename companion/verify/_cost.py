"""Costs that are counted, not timed: operations and bytes."""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from companion.verify._compare import mutant_value
from companion.verify._independence import require_independent, watch
from companion.verify._record import Verification, VerificationError, check_label, emit

__all__ = ["cost", "count_flops", "peak_bytes"]


def cost(
    label: str,
    measured: Callable[..., int],
    claim: Callable[..., int],
    sizes: Sequence[Mapping[str, int]],
    *,
    mutants: Mapping[str, Callable[..., int]],
    unit: str,
) -> Verification:
    r"""Verify a formula for a counted cost, exactly.

    Args:
        label: Label of the equation.
        measured: Runs the computation at the given sizes and returns what was counted.
        claim: The formula, called with the same sizes.
        sizes: At least two settings, each with pairwise distinct sizes. Together they must vary
            independently: where a product of powers of sizes is the same in all settings, as
            :math:`d/(h\,d_k)` is when every model has :math:`d = h\,d_k`, one of these sizes could
            stand for the others in a wrong formula.
        mutants: Names and wrong formulas, at least one. Each must give a number at each of the
            settings, and a wrong one at one of them.
        unit: What is counted, such as ``"FLOPs"`` or ``"bytes"``.

    Returns:
        The record.

    Raises:
        VerificationError: If a count differs, the sizes hide mistakes, or a mutant survives.

    Example:
        >>> def multiply(n, d, m):
        ...     return count_flops(torch.matmul, torch.ones(n, d), torch.ones(d, m))
        >>> record = cost(
        ...     "eq:matmul-cost", multiply, lambda n, d, m: 2 * n * d * m,
        ...     [dict(n=3, d=5, m=7), dict(n=11, d=2, m=13)],
        ...     mutants={"additions forgotten": lambda n, d, m: n * d * m}, unit="FLOPs",
        ... )
        ✓ eq:matmul-cost · cost by counted FLOPs · largest error 0 · 3 mutants rejected
    """
    check_label(label)
    if len(sizes) < 2:
        raise VerificationError(f"{label}: give at least two settings of the sizes")
    if not mutants:
        raise VerificationError(f"{label}: give at least one mutant, a wrong formula")
    for setting in sizes:
        if len(set(setting.values())) < len(setting):
            raise VerificationError(f"{label}: sizes must differ pairwise, got {dict(setting)}")
    _require_independent_sizes(label, sizes)
    counts: list[int] = []
    value: Any
    for setting in sizes:
        if not counts:  # one setting shows which code runs; to watch slows a measurement down
            claimed, counted = watch(claim, setting), watch(measured, setting)
            require_independent(label, claimed, "the measurement", counted)
            value, count = claimed.value, int(counted.value)
        else:
            value, count = claim(**setting), int(measured(**setting))
        if value != count:
            raise VerificationError(
                f"{label}: at {dict(setting)} the claim is {value} {unit}, counted are {count}"
            )
        counts.append(count)
    if len(set(counts)) == 1:
        raise VerificationError(f"{label}: the cost is the same at every setting of the sizes")
    wrong: dict[str, Callable[..., int]] = {
        "doubled": lambda **setting: 2 * claim(**setting),
        "one more": lambda **setting: claim(**setting) + 1,
        **mutants,
    }
    for name, mutant in wrong.items():
        values = [mutant_value(label, name, mutant, setting, shape=()) for setting in sizes]
        if all(int(v) == count == v for v, count in zip(values, counts, strict=True)):
            raise VerificationError(f"{label}: the wrong formula {name!r} fits every count")
    return emit(
        label=label,
        kind="cost",
        routes=[(f"counted {unit}", 0.0)],
        tolerance=0.0,
        mutants=wrong,
        points=len(sizes),
        unit=unit,
    )


def _require_independent_sizes(label: str, sizes: Sequence[Mapping[str, int]]) -> None:
    """Refuse sizes of which a product of small powers is the same in all settings."""
    names = sorted(sizes[0])
    if any(sorted(setting) != names for setting in sizes):
        raise VerificationError(f"{label}: every setting must name the same sizes, {names}")
    if any(not isinstance(size, int) or size < 1 for s in sizes for size in s.values()):
        raise VerificationError(f"{label}: sizes are positive whole numbers")
    # Powers up to two, as costs have them; with very many sizes only ratios and products.
    most = 2 if len(names) <= 7 else 1
    powers = torch.cartesian_prod(*[torch.arange(-most, most + 1)] * len(names)).reshape(
        -1, len(names)
    )
    powers = powers[powers.abs().sum(1) > 0]
    logs = torch.tensor([[math.log(s[n]) for n in names] for s in sizes], dtype=torch.float64)
    values = logs @ powers.double().T
    same = (values - values[0]).abs().amax(0) < 1e-9
    if not bool(same.any()):
        return
    found = powers[same]
    simplest = found[found.abs().sum(1).argmin()].tolist()
    if sum(power != 0 for power in simplest) == 1:
        [name] = [n for n, power in zip(names, simplest, strict=True) if power]
        raise VerificationError(
            f"{label}: the size {name!r} is {sizes[0][name]} in every setting, so a formula "
            "without it would pass. Vary it."
        )
    sign = 1 if max(simplest) > 0 else -1
    product = " ".join(
        f"{n}^{sign * p}" if sign * p != 1 else n for n, p in zip(names, simplest, strict=True) if p
    )
    raise VerificationError(
        f"{label}: {product} is the same in every setting, so one of these sizes could stand for "
        "the others in a wrong formula. Vary the sizes independently."
    )


def count_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Count the floating-point operations of the products in a call, attention included.

    PyTorch's counter knows matrix products, convolutions, and the fused attention kernels of
    CUDA. It does not know the fused attention kernel of the CPU and would count that as zero. So
    attention is computed here by PyTorch's plain kernel, two products of matrices.

    Args:
        fn: The function. Backward passes inside it count as well.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        Operations; a multiplication and an addition are two. Element-wise work counts nothing,
        and a causal mask saves nothing: the plain kernel computes all scores.

    Numerics:
        On the ``meta`` device nothing is computed, so even a large model is counted in no time.

    Example:
        >>> count_flops(torch.matmul, torch.ones(3, 5), torch.ones(5, 7))
        210
        >>> q = torch.ones(1, 3, 5, 7)
        >>> count_flops(torch.nn.functional.scaled_dot_product_attention, q, q, q)
        2100
    """
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        fn(*args, **kwargs)
    return int(counter.get_total_flops())


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operators create, from their birth to their death."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, int] = {}
        self._now = 0
        self.peak: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # What an operator takes in and no operator made before was there before the call.
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage(), count=False)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage(), count=True)
        return out

    def _add(self, storage: torch.UntypedStorage, *, count: bool) -> None:
        # A view shares the storage of its base, which is counted once.
        key = storage._cdata
        if key in self._live:
            return
        self._live[key] = storage.nbytes() if count else 0
        self._now += self._live[key]
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._now -= self._live.pop(key, 0)


def peak_bytes(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Measure the most memory that a call holds at one time beyond its arguments.

    Every tensor that an operator creates counts from its birth to its death, tensors that
    autograd keeps included. The count is exact and repeatable. Scratch memory inside a kernel
    does not appear, so on a CUDA device ``torch.cuda.max_memory_allocated`` tells more.

    Args:
        fn: The function. It may run a backward pass.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        Bytes.

    Example:
        >>> peak_bytes(lambda x: (x + 1).sum(), torch.ones(1000))
        4004
    """
    with _LiveBytes() as counter:
        fn(*args, **kwargs)
    return int(counter.peak)
