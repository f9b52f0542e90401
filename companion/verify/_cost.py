"""Costs that are counted, not timed: operations and bytes."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

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
    """Verify a formula for a counted cost, exactly.

    Args:
        label: Label of the equation.
        measured: Runs the computation at the given sizes and returns what was counted.
        claim: The formula, called with the same sizes.
        sizes: At least two settings, each with pairwise distinct sizes.
        mutants: Names and wrong formulas, at least one. Each must fail at one of the settings.
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
    counts = [int(measured(**setting)) for setting in sizes]
    for setting, count in zip(sizes, counts, strict=True):
        claimed = claim(**setting)
        if claimed != count:
            raise VerificationError(
                f"{label}: at {dict(setting)} the claim is {claimed} {unit}, counted are {count}"
            )
    if len(set(counts)) == 1:
        raise VerificationError(f"{label}: the cost is the same at every setting of the sizes")
    wrong: dict[str, Callable[..., int]] = {
        "doubled": lambda **setting: 2 * claim(**setting),
        "one more": lambda **setting: claim(**setting) + 1,
        **mutants,
    }
    for name, mutant in wrong.items():
        if all(mutant(**setting) == count for setting, count in zip(sizes, counts, strict=True)):
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
