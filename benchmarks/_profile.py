"""Where the time of decoding goes, by PyTorch's profiler."""

from typing import Any

import torch
from torch.profiler import profile

from benchmarks.pairs.models import WRITTEN, decode_ours

__all__ = ["measure"]

#: What is reported, and the operations whose whole time counts for it.
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "norms": ("aten::rms_norm", "aten::layer_norm"),
    "attention": ("aten::scaled_dot_product_attention",),
}


def measure(device: str) -> dict[str, Any]:
    """Profile the decoding of the pair ``model/decode``, our side.

    Args:
        device: Where it runs.

    Returns:
        The share of each kind of operation in the time of all, and how many operations a token
        takes. A profiler slows small operations down more than large ones.
    """
    side = decode_ours(torch.device(device))
    side()
    with profile() as found:
        side()
    rows = {row.key: row for row in found.key_averages() if row.key.startswith("aten::")}
    total = sum(row.self_cpu_time_total for row in rows.values())
    shares = {
        kind: sum(rows[name].cpu_time_total for name in names if name in rows) / total
        for kind, names in KINDS.items()
    }
    return {"shares": shares, "operations": sum(row.count for row in rows.values()) / WRITTEN}
