r"""The roofline: a machine as two numbers, operations a second and bytes a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from companion.core import check_count, check_in_range, resolve_device

__all__ = ["Roofline", "measure_roofline"]


@dataclass(frozen=True)
class Roofline:
    r"""What a machine can do at best.

    A task of :math:`F` operations on :math:`b` bytes of memory takes at least as long as the
    slower of the two:

    .. math:: t \ge \max\Big(\frac F{\text{peak}}, \frac b{\text{bandwidth}}\Big)

    Its *arithmetic intensity* is :math:`F/b`. Below ``ridge`` the memory is the limit, above
    it the arithmetic.

    Attributes:
        peak: Floating-point operations a second.
        bandwidth: Bytes a second.

    Raises:
        ValueError: If one of them is not positive.

    References:
        Williams, Waterman and Patterson 2009, "Roofline", doi:10.1145/1498765.1498785.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> machine = Roofline(peak=1e12, bandwidth=1e11)
        >>> machine.ridge, machine.attainable(2.0), machine.seconds(1e12, 2e11)
        (10.0, 200000000000.0, 2.0)
    """

    peak: float
    bandwidth: float

    def __post_init__(self) -> None:
        check_in_range("peak", self.peak, low=0.0, open_low=True)
        check_in_range("bandwidth", self.bandwidth, low=0.0, open_low=True)

    @property
    def ridge(self) -> float:
        """Operations a byte at which memory and arithmetic take equally long."""
        return self.peak / self.bandwidth

    def attainable(self, intensity: float) -> float:
        """Return the most operations a second at an arithmetic intensity.

        Args:
            intensity: Operations for each byte that is moved, 0 or more.

        Returns:
            Operations a second.
        """
        check_in_range("intensity", intensity, low=0.0)
        return min(self.peak, intensity * self.bandwidth)

    def seconds(self, flops: float, moved: float) -> float:
        """Return the shortest time for a task.

        Args:
            flops: Its operations, 0 or more.
            moved: Bytes that it must move, 0 or more.

        Returns:
            Seconds.
        """
        check_in_range("flops", flops, low=0.0)
        check_in_range("moved", moved, low=0.0)
        return max(flops / self.peak, moved / self.bandwidth)


def measure_roofline(
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    size: int = 1024,
    megabytes: int = 128,
    repeats: int = 5,
) -> Roofline:
    """Measure the machine at hand: a large product of matrices, and one of a matrix and a vector.

    Args:
        device: Where to measure; the default device of
            :func:`companion.core.resolve_device` if it is not given.
        dtype: Type of the numbers.
        size: Side of the square matrices.
        megabytes: Size of the matrix that meets a vector. It must not fit into a processor's
            caches, or the bandwidth is theirs.
        repeats: Runs of each; the fastest counts.

    Returns:
        Peak and bandwidth for this dtype, with the threads that PyTorch uses now.

    Raises:
        ValueError: If a size is smaller than 1.

    Numerics:
        A measurement: it differs from run to run, and on a busy machine it is too low. It waits
        for the device by nature.

    Book: :doc:`/book/transformer/cost`
    """
    check_count("size", size)
    check_count("megabytes", megabytes)
    check_count("repeats", repeats)
    place = resolve_device(device)
    a = torch.ones(size, size, device=place, dtype=dtype)
    rows = max(1, megabytes * 2**20 // (4096 * a.element_size()))
    matrix = torch.ones(rows, 4096, device=place, dtype=dtype)
    vector = torch.ones(4096, device=place, dtype=dtype)
    product = _fastest(lambda: a @ a, place, repeats)
    reading = _fastest(lambda: matrix @ vector, place, repeats)
    return Roofline(
        peak=2 * size**3 / product,
        bandwidth=matrix.numel() * matrix.element_size() / reading,
    )


def _fastest(fn: Callable[[], torch.Tensor], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest run, after one that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        fn()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
