"""Fewer weights: pruned, shared, of low rank, in blocks, or used by turns.

Book: :doc:`/book/efficiency/sparsity`.
"""

from companion.efficiency.sparsity._experts import (
    MixtureOfExperts,
    Routing,
    balance_bias,
    experts_factory,
    load_balance,
    mixture_by_hand,
    route,
)
from companion.efficiency.sparsity._low_rank import (
    BlockLowRankLinear,
    LowRankLinear,
    MonarchLinear,
    activation_aware_factors,
    break_even_rank,
    svd_factors,
)
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
    obd_saliency,
    obs_prune,
    obs_remove,
    obs_saliency,
    output_error,
    refit,
)
from companion.efficiency.sparsity._penalties import (
    HardConcrete,
    group_soft_threshold,
    lasso,
    soft_threshold,
)
from companion.efficiency.sparsity._sharing import (
    FactorizedEmbedding,
    ParameterCount,
    SharedEncoder,
    parameter_uses,
    share_blocks_,
)
from companion.efficiency.sparsity._sparsegpt import Method, prune_, sparsegpt
from companion.efficiency.sparsity._topology import RigL, cosine_ratio, rigl_update
from companion.efficiency.sparsity._units import remove_units, unit_norms

__all__ = [
    "BlockLowRankLinear",
    "FactorizedEmbedding",
    "HardConcrete",
    "LowRankLinear",
    "Method",
    "MixtureOfExperts",
    "MonarchLinear",
    "ParameterCount",
    "RigL",
    "Routing",
    "SharedEncoder",
    "activation_aware_factors",
    "balance_bias",
    "block_mask",
    "break_even_rank",
    "cosine_ratio",
    "experts_factory",
    "global_masks",
    "group_soft_threshold",
    "input_hessian",
    "inverse_factor",
    "lasso",
    "load_balance",
    "magnitude_mask",
    "mixture_by_hand",
    "nm_mask",
    "obd_saliency",
    "obs_prune",
    "obs_remove",
    "obs_saliency",
    "output_error",
    "pack_nm",
    "parameter_uses",
    "prune_",
    "refit",
    "remove_units",
    "rigl_update",
    "route",
    "share_blocks_",
    "soft_threshold",
    "sparsegpt",
    "straight_through",
    "svd_factors",
    "top_mask",
    "unit_norms",
    "unpack_nm",
    "wanda_scores",
]
