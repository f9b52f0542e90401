"""Fewer weights: pruned, shared, of low rank, in blocks, or used by turns.

Book: :doc:`/book/efficiency/sparsity`.
"""

from companion.efficiency.sparsity._masks import (
    block_mask,
    global_masks,
    magnitude_mask,
    nm_mask,
    pack_nm,
    straight_through,
    top_mask,
    unpack_nm,
    wanda_scores,
)
from companion.efficiency.sparsity._obs import (
    input_hessian,
    inverse_factor,
    linear_layers,
    obd_saliency,
    obs_prune,
    obs_remove,
    obs_saliency,
    output_error,
    refit,
)
from companion.efficiency.sparsity._sparsegpt import Method, prune_, sparsegpt

__all__ = [
    "Method",
    "block_mask",
    "global_masks",
    "input_hessian",
    "inverse_factor",
    "linear_layers",
    "magnitude_mask",
    "nm_mask",
    "obd_saliency",
    "obs_prune",
    "obs_remove",
    "obs_saliency",
    "output_error",
    "pack_nm",
    "prune_",
    "refit",
    "sparsegpt",
    "straight_through",
    "top_mask",
    "unpack_nm",
    "wanda_scores",
]
