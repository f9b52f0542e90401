"""Fewer weights: pruned, shared, of low rank, in blocks, or used by turns.

Book: :doc:`/book/efficiency/sparsity`.
"""

from companion.efficiency.sparsity._obs import input_hessian, inverse_factor, linear_layers

__all__ = ["input_hessian", "inverse_factor", "linear_layers"]
