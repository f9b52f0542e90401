"""What the layers of this chapter share, beyond the attention that each computes."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from companion.efficiency.multiscale._shared import real_keys
from companion.transformer.attention import Mask
from companion.transformer.multi_head import MultiHeadAttention
from companion.transformer.multi_head._attention import Rotation


class CoarseAttention(MultiHeadAttention):
    """Several heads whose attention is computed by blocks: masks are causality and padding only."""

    sites: tuple[str, ...] = ("queries", "keys", "values", "heads")

    def __init__(self, dim: int, heads: int, *, causal: bool, **rest: Any) -> None:
        super().__init__(dim, heads, **rest)
        if self.dropout or self.relative is not None:
            what = "dropout of weights" if self.dropout else "relative positions"
            raise ValueError(f"{type(self).__name__} has no {what}: use MultiHeadAttention")
        self.causal = causal

    def forward(
        self,
        x: Float[Tensor, "batch n dim"],
        context: Float[Tensor, "batch m dim"] | None = None,
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | None = None,
        rotation: Rotation | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Let every token read the others, near and far.

        Args:
            x: The tokens.
            context: Not for this layer.
            mask: ``causal()``, ``padding(real)``, or both, as the layer was made for.
            bias: Not for this layer.
            rotation: Turns queries and keys by their positions, before keys are averaged.
            cache: Where keys and values are kept, all of them.

        Returns:
            One new vector for each token.

        Raises:
            ValueError: If a bias, a context or a prefix is given, or the mask says more.
        """
        for what, given in (("context", context), ("bias", bias), ("prefix", self.prefix)):
            if given is not None:
                raise ValueError(
                    f"{type(self).__name__} cannot take a {what}: use MultiHeadAttention"
                )
        Q, K, V = self._project(x, None, rotation, cache)
        real = real_keys(mask, x, K.shape[2], heads=self.heads, causal=self.causal)
        return self._mix(self.site("heads", self._read(x, Q, K, V, real)))

    def _read(self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, real: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _sized(self, heads: int, kv_heads: int) -> MultiHeadAttention:
        raise ValueError(
            f"heads of {type(self).__name__} cannot be taken out: do it in MultiHeadAttention"
        )
