r"""One head of self-attention as a module."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import check_count
from companion.transformer.attention._dense import attention_weights
from companion.transformer.attention._dispatch import attention
from companion.transformer.attention._masks import Mask

__all__ = ["SelfAttention"]


class SelfAttention(nn.Module):
    r"""One head of scaled dot-product self-attention.

    .. math:: Q = X W^Q, \quad K = X W^K, \quad V = X W^V, \quad
        O = \mathrm{softmax}\big(Q K^\top / \sqrt{d_k} + M\big) V

    The maps are ``nn.Linear`` layers without biases, whose ``weight`` is the transpose of the
    matrix of the formula: ``self.query.weight.T`` is :math:`W^Q`.

    Args:
        dim: Width :math:`d` of the rows of :math:`X`.
        key_dim: Width :math:`d_k` of queries and keys.
        value_dim: Width :math:`d_v` of values and outputs.
        device: Where to make the parameters.
        dtype: Their dtype.

    Raises:
        ValueError: If a width is below 1.

    References:
        A. Vaswani et al., arXiv:1706.03762, section 3.2.1. No output projection: that belongs to
        several heads.

    Book: :doc:`/book/transformer/attention`

    Example:
        >>> layer = SelfAttention(5, 3, 2)
        >>> tuple(layer(torch.zeros(7, 11, 5)).shape)
        (7, 11, 2)
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        value_dim: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, width in (("dim", dim), ("key_dim", key_dim), ("value_dim", value_dim)):
            check_count(name, width)
        self.query = nn.Linear(dim, key_dim, bias=False, device=device, dtype=dtype)
        self.key = nn.Linear(dim, key_dim, bias=False, device=device, dtype=dtype)
        self.value = nn.Linear(dim, value_dim, bias=False, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "*batch n dim"],
        *,
        mask: Mask | Bool[Tensor, "*#mask"] | None = None,
    ) -> Float[Tensor, "*batch n value"]:
        """Return the outputs of attention.

        Args:
            x: Rows of tokens, ``(batch, n, dim)`` or ``(n, dim)``.
            mask: Which token may read which, True means it may.

        Returns:
            One output a token.
        """
        return attention(self.query(x), self.key(x), self.value(x), mask=mask)

    def weights(
        self,
        x: Float[Tensor, "*batch n dim"],
        *,
        mask: Mask | Bool[Tensor, "*#mask"] | None = None,
    ) -> Float[Tensor, "*batch n n"]:
        """Return the weights of attention, for reading.

        Args:
            x: Rows of tokens, ``(batch, n, dim)`` or ``(n, dim)``.
            mask: Which token may read which.

        Returns:
            The weights; rows sum to 1.
        """
        return attention_weights(self.query(x), self.key(x), mask=mask)
