"""A few latent vectors that read a long text and then work among themselves (Perceiver)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import check_count, check_shape
from companion.transformer.attention import padding
from companion.transformer.multi_head import MultiHeadAttention

__all__ = ["LatentArray"]


class LatentArray(nn.Module):
    r"""A fixed number of learned vectors that read a text of any length, and then one another.

    .. math::
        Z_0 = Z + \mathrm{MHA}(Z, X), \qquad Z_l = Z_{l-1} + \mathrm{MHA}(Z_{l-1}, Z_{l-1}),
        \qquad l = 1, \dots, L

    Args:
        dim: Width of the tokens and of the latent vectors.
        heads: Heads of each attention.
        latents: How many vectors, :math:`m`.
        layers: How often they read one another, :math:`L`; 0 for none.

    Attributes:
        latents: The vectors :math:`Z`, (latents, dim), drawn with standard deviation 0.02
            from the global generator, as PyTorch's modules draw.
        cross: The attention to the text.
        layers: The attentions among the vectors.

    Raises:
        ValueError: If a size is too small, or heads do not divide ``dim``.

    Numerics:
        Scores and weighted sums cost :math:`4(nm + Lm^2)d`, linear in the text.

    References:
        A. Jaegle et al. 2021, "Perceiver", arXiv:2103.03206, sec. 3.1, without the norms and
        feed-forward layers, which a stack of blocks adds.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> array = LatentArray(12, 3, latents=5, layers=2)
        >>> array(torch.ones(2, 31, 12)).shape
        torch.Size([2, 5, 12])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        latents: int,
        layers: int,
    ) -> None:
        super().__init__()
        check_count("latents", latents)
        check_count("layers", layers, low=0)
        self.dim = dim
        self.cross = MultiHeadAttention(dim, heads)
        self.layers = nn.ModuleList(MultiHeadAttention(dim, heads) for _ in range(layers))
        self.latents = nn.Parameter(0.02 * torch.randn(latents, dim))

    def forward(
        self, x: Float[Tensor, "batch n dim"], *, real: Bool[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch latents dim"]:
        """Read a text.

        Args:
            x: Its tokens.
            real: Which of them are not padding.

        Returns:
            The vectors after the last layer. They do not depend on the order of the tokens.

        Raises:
            ValueError: If the width is another.
        """
        check_shape("x", x, (None, None, self.dim))
        z: Tensor = self.latents.expand(x.shape[0], -1, -1)
        z = z + self.cross(z, x, mask=None if real is None else padding(real))
        for layer in self.layers:
            z = z + layer(z)
        return z
