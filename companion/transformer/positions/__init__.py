r"""Position: how attention, which cannot see order, is told where tokens stand.

Notation of the book: position :math:`t` or :math:`m`, queries :math:`q_i` and keys :math:`k_j` as
rows, scores :math:`S`, frequencies :math:`\omega_i` in radians a position. Offsets are key minus
query, :math:`j - i`, and so negative for the past. Three kinds of things are here:

- *absolute* positions, added to the token embeddings (:class:`SinusoidalPositions`,
  :class:`LearnedPositions`);
- a *rotation* of queries and keys (:class:`Rotary` and :func:`rotate`), with the scalings for
  texts longer than those of training;
- *relative* terms of the scores: biases that depend on the offset alone (:class:`Alibi`,
  :class:`T5Bias`), added to scaled scores, and terms that also depend on the query
  (:class:`ShawRelative`, :class:`TransformerXLBias`), added before the scaling, which
  ``companion.transformer.multi_head.MultiHeadAttention`` takes as ``relative=``.

Every module takes positions as integer tensors, so a cache or left padding needs no
special case. The modules have no hidden state: the same positions give the same result.

Book: :doc:`/book/transformer/positions`.
"""

from companion.transformer.positions._absolute import (
    LearnedPositions,
    SinusoidalPositions,
    sinusoidal_positions,
    sinusoidal_shift,
)
from companion.transformer.positions._bias import Alibi, T5Bias, alibi_slopes, t5_bucket
from companion.transformer.positions._frequencies import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    RopeScaling,
    YarnScaling,
    rope_frequencies,
)
from companion.transformer.positions._relative import (
    ShawRelative,
    TransformerXLBias,
    relative_shift,
)
from companion.transformer.positions._rotary import (
    Rotary,
    interleave_pairs,
    rotate,
    rotation_matrix,
)

__all__ = [
    "Alibi",
    "DynamicNTKScaling",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "NTKScaling",
    "RopeScaling",
    "Rotary",
    "ShawRelative",
    "SinusoidalPositions",
    "T5Bias",
    "TransformerXLBias",
    "YarnScaling",
    "alibi_slopes",
    "interleave_pairs",
    "relative_shift",
    "rope_frequencies",
    "rotate",
    "rotation_matrix",
    "sinusoidal_positions",
    "sinusoidal_shift",
    "t5_bucket",
]
