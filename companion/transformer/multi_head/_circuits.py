"""What a head compares and what it moves: two matrices of low rank."""

from jaxtyping import Float
from torch import Tensor

from companion.transformer.multi_head._attention import MultiHeadAttention

__all__ = ["output_value_circuit", "query_key_circuit"]


def query_key_circuit(layer: MultiHeadAttention) -> Float[Tensor, "heads dim dim"]:
    r"""Return the bilinear form by which each head compares two tokens.

    .. math:: W^{QK}_i = W^Q_i W^{K\top}_{g(i)}

    Without biases, the score of token :math:`x` for token :math:`x'` is
    :math:`x \, W^{QK}_i \, x'^\top`, times the layer's scale. Queries and keys act through this
    product alone.

    Args:
        layer: An attention layer. Head :math:`i` reads the key-value group :math:`g(i)`.

    Returns:
        One matrix for each query head, of rank :math:`d_k` at most. Biases, rotations and
        relative positions are not part of it: with rotary positions, it is the form for a token
        and itself.

    Numerics:
        :math:`2 h d^2 d_k` operations, :math:`h d^2` numbers. Differentiable.

    References:
        N. Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits",
        https://transformer-circuits.pub/2021/framework/index.html, in the transposed convention.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> query_key_circuit(MultiHeadAttention(6, 3)).shape
        torch.Size([3, 6, 6])
    """
    group = layer.heads // layer.kv_heads
    return layer.query_matrix @ layer.key_matrix.repeat_interleave(group, dim=0).mT


def output_value_circuit(layer: MultiHeadAttention) -> Float[Tensor, "heads dim dim"]:
    r"""Return the linear map through which each head passes what it reads.

    .. math:: W^{VO}_i = W^V_{g(i)} W^O_i

    A token :math:`x` that the head reads with weight :math:`a` adds :math:`a \, x \, W^{VO}_i` to
    the output of the layer.

    Args:
        layer: An attention layer. Head :math:`i` reads the key-value group :math:`g(i)`.

    Returns:
        One matrix for each query head, of rank :math:`d_v` at most, without the biases.

    Numerics:
        :math:`2 h d^2 d_v` operations, :math:`h d^2` numbers. Differentiable.

    References:
        N. Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits",
        https://transformer-circuits.pub/2021/framework/index.html, in the transposed convention,
        there called the OV circuit.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> output_value_circuit(MultiHeadAttention(6, 3)).shape
        torch.Size([3, 6, 6])
    """
    group = layer.heads // layer.kv_heads
    return layer.value_matrix.repeat_interleave(group, dim=0) @ layer.output_matrix
