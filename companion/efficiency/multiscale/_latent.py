"""Keys and values made from one small vector a token, which alone is kept (MLA)."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import HasSites, check_count, check_shape
from companion.transformer.attention import Mask, attention
from companion.transformer.block import RMSNorm
from companion.transformer.multi_head._attention import Rotation

__all__ = ["LatentCache", "MultiHeadLatentAttention", "latent_cache_numbers"]


class LatentCache:
    """The latent vectors and the rotated keys of one layer, in memory that is reserved once.

    Attributes:
        memory: Shape (batch, capacity, rank + rope_dim).
        length: How many positions are filled.

    Book: :doc:`/book/efficiency/multiscale`
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.length = 0

    def append(self, new: Float[Tensor, "batch new width"]) -> Float[Tensor, "batch held width"]:
        """Store new positions behind the ones that are held.

        Args:
            new: Latent vectors with the rotated keys behind them.

        Returns:
            All that is held now, as a view.

        Raises:
            ValueError: If the capacity is exceeded or the shape is another. Nothing is stored.
        """
        end = self.length + new.shape[1]
        check_shape("new", new, (self.memory.shape[0], None, self.memory.shape[2]))
        if end > self.memory.shape[1]:
            raise ValueError(
                f"the cache holds {self.length} of at most {self.memory.shape[1]} positions, "
                f"and {new.shape[1]} more do not fit: make it with a larger capacity"
            )
        self.memory[:, self.length : end].copy_(new.detach())
        self.length = end
        return self.memory[:, :end]

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on.

        Args:
            length: Positions to keep.

        Raises:
            ValueError: If more would be kept than are held.
        """
        check_count("length", length, low=0, high=self.length)
        self.length = length

    def select(self, rows: Integer[Tensor, " batch"]) -> None:
        """Let sequence ``i`` go on from what sequence ``rows[i]`` held.

        Args:
            rows: One number for each sequence.
        """
        held = self.memory[:, : self.length]
        held.copy_(held[rows])


def latent_cache_numbers(*, rank: int, rope_dim: int) -> int:
    r"""Return how many numbers a layer keeps of each token: :math:`r + d_R`.

    Args:
        rank: Width of the latent vector.
        rope_dim: Width of the rotated key that all heads share.

    Returns:
        Numbers for each token and layer. Heads of keys and values keep
        :math:`h_{kv} (d_k + d_v)`.

    Raises:
        ValueError: If ``rank`` is below 1 or ``rope_dim`` below 0.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> latent_cache_numbers(rank=512, rope_dim=64)  # DeepSeek-V2
        576
    """
    check_count("rank", rank)
    check_count("rope_dim", rope_dim, low=0)
    return rank + rope_dim


class MultiHeadLatentAttention(HasSites):
    r"""Multi-head latent attention: keys and values of all heads come from one vector a token.

    .. math::
        c_j = \mathrm{norm}(x_j W^{DKV}), \qquad
        k_{jh} = [c_j W^{UK}_h \;\; R_j(x_j W^{KR})], \qquad v_{jh} = c_j W^{UV}_h

    The queries are :math:`q_{ih} = [x_i W^Q_h \;\; R_i(x_i W^{QR}_h)]`, and scores are divided by
    :math:`\sqrt{d_N + d_R}`, with the widths :math:`d_N` of the part without positions and
    :math:`d_R` of the rotated one. Only :math:`c_j` and the rotated key are kept, :math:`r + d_R`
    numbers for all heads.

    Since :math:`q \cdot (c W^{UK}) = (q W^{UK\top}) \cdot c`, the maps to keys and values can be
    applied to the queries and to the result, once a query, and need never be applied to the past.
    Then the heads share one key-value head of width :math:`r + d_R`: ``form="absorbed"``.

    Args:
        dim: Width of the tokens.
        heads: Heads.
        rank: Width :math:`r` of the latent vector.
        head_dim: Width :math:`d_N` of keys without positions.
        rope_dim: Width :math:`d_R` of the rotated part, an even number; 0 for none.
        value_dim: Width of values; by default ``head_dim``.
        query_rank: Width of a latent vector for the queries, with a norm behind it; none by
            default.
        norm_eps: As of :class:`~companion.transformer.block.RMSNorm`.
        form: ``"naive"`` makes keys and values of all heads, ``"absorbed"`` none, and ``"auto"``
            takes the second when more positions are held than asked about. The results are equal
            up to rounding.
        device: Where the parameters are made.
        dtype: Their type.

    Attributes:
        sites: ``latent`` (batch, n, rank), after the norm, and ``heads`` (batch, heads, n,
            value_dim), what each head has read.

    Raises:
        ValueError: If a size is below 1, ``rope_dim`` is odd, or ``form`` unknown.

    Numerics:
        The scale is that of the width before absorption. Absorbed scores cost
        :math:`2(r + d_R)` for each pair and head where naive ones cost :math:`2(d_N + d_R)`, but
        the naive form must first make, for each position held, keys and values of all heads.

    References:
        DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434, sec. 2.1, eq. (9) to (19). As in the
        released models there is a norm behind each latent vector.

    Book: :doc:`/book/efficiency/multiscale`

    Example:
        >>> layer = MultiHeadLatentAttention(12, 3, rank=5, head_dim=4)
        >>> layer(torch.ones(2, 7, 12)).shape
        torch.Size([2, 7, 12])
    """

    sites = ("latent", "heads")

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        rank: int,
        head_dim: int,
        rope_dim: int = 0,
        value_dim: int | None = None,
        query_rank: int | None = None,
        norm_eps: float = 1e-6,
        form: str = "auto",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        value_dim = head_dim if value_dim is None else value_dim
        sizes = {"dim": dim, "heads": heads, "rank": rank, "head_dim": head_dim}
        for name, size in (sizes | {"value_dim": value_dim}).items():
            check_count(name, size)
        check_count("rope_dim", rope_dim, low=0)
        if rope_dim % 2:
            raise ValueError(f"rope_dim must be even, got {rope_dim}")
        if form not in ("auto", "naive", "absorbed"):
            raise ValueError(f"form must be 'auto', 'naive' or 'absorbed', got {form!r}")
        self.dim, self.heads, self.rank = dim, heads, rank
        self.head_dim, self.rope_dim, self.value_dim = head_dim, rope_dim, value_dim
        self.form = form
        self.scale = (head_dim + rope_dim) ** -0.5
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        width = heads * (head_dim + rope_dim)
        if query_rank is None:
            self.query: nn.Module = nn.Linear(dim, width, bias=False, **kind)
        else:
            check_count("query_rank", query_rank)
            self.query = nn.Sequential(
                nn.Linear(dim, query_rank, bias=False, **kind),
                RMSNorm(query_rank, eps=norm_eps, **kind),
                nn.Linear(query_rank, width, bias=False, **kind),
            )
        self.squeeze = nn.Linear(dim, rank + rope_dim, bias=False, **kind)
        self.norm = RMSNorm(rank, eps=norm_eps, **kind)
        self.expand = nn.Linear(rank, heads * (head_dim + value_dim), bias=False, **kind)
        self.out = nn.Linear(heads * value_dim, dim, bias=False, **kind)

    def extra_repr(self) -> str:
        """Name the sizes when the module is printed."""
        return (
            f"heads={self.heads}, rank={self.rank}, head_dim={self.head_dim}, "
            f"rope_dim={self.rope_dim}, value_dim={self.value_dim}"
        )

    def forward(
        self,
        x: Float[Tensor, "batch n dim"],
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | None = None,
        rotation: Rotation | None = None,
        cache: LatentCache | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Let every token read the others.

        Args:
            x: The tokens.
            mask: Which keys a query may read.
            bias: Added to the scaled scores.
            rotation: Turns tensors (batch, n, heads, rope_dim) by their positions; needed if and
                only if there is a rotated part. A model that is to give one has ``rope_dim`` as
                the width of its heads in the configuration.
            cache: Where latent vectors and rotated keys are kept.

        Returns:
            One new vector for each token.

        Raises:
            ValueError: If a rotation is missing, or given for no rotated part.
        """
        check_shape("x", x, (None, None, self.dim))
        if (rotation is None) != (self.rope_dim == 0):
            raise ValueError(
                f"a rotated part of width {self.rope_dim} needs a rotation by positions"
                if rotation is None
                else "with rope_dim=0 there is nothing to turn: leave the rotation out"
            )
        q, q_turned, held = self._project(x, rotation)
        if cache is not None:
            held = cache.append(held)
        c, k_turned = held[..., : self.rank], held[..., self.rank :]
        absorbed = self.form == "absorbed" or (self.form == "auto" and c.shape[1] > x.shape[1])
        read = self._absorbed if absorbed else self._naive
        Z = read(q, q_turned, c, k_turned, {"mask": mask, "bias": bias, "scale": self.scale})
        mixed: Tensor = self.out(self.site("heads", Z).transpose(1, 2).flatten(2))
        return mixed

    def _project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of both parts, (batch, heads, n, .), and what is kept of the tokens."""
        both = self.query(x).unflatten(-1, (self.heads, self.head_dim + self.rope_dim))
        q, q_turned = both.split([self.head_dim, self.rope_dim], -1)
        latent, k_turned = self.squeeze(x).split([self.rank, self.rope_dim], -1)
        latent = self.site("latent", self.norm(latent))
        if rotation is not None:
            q_turned = rotation(q_turned)
            k_turned = rotation(k_turned.unsqueeze(2)).squeeze(2)
        held = torch.cat([latent, k_turned], -1)
        return q.transpose(1, 2), q_turned.transpose(1, 2), held

    @property
    def key_matrix(self) -> Float[Tensor, "heads rank head_dim"]:
        r""":math:`W^{UK}_h` of each head, as a view."""
        return self._expansions()[:, : self.head_dim].mT

    @property
    def value_matrix(self) -> Float[Tensor, "heads rank value_dim"]:
        r""":math:`W^{UV}_h` of each head, as a view."""
        return self._expansions()[:, self.head_dim :].mT

    def _expansions(self) -> Tensor:
        return self.expand.weight.view(self.heads, self.head_dim + self.value_dim, self.rank)

    def _naive(
        self, q: Tensor, q_turned: Tensor, c: Tensor, k_turned: Tensor, how: dict[str, Any]
    ) -> Tensor:
        made = self.expand(c).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = made.split([self.head_dim, self.value_dim], -1)
        shared = k_turned[:, None].expand(-1, self.heads, -1, -1)
        return attention(torch.cat([q, q_turned], -1), torch.cat([k, shared], -1), v, **how)

    def _absorbed(
        self, q: Tensor, q_turned: Tensor, c: Tensor, k_turned: Tensor, how: dict[str, Any]
    ) -> Tensor:
        q = torch.cat([q @ self.key_matrix.mT, q_turned], -1)
        k = torch.cat([c, k_turned], -1)
        return attention(q, k[:, None], c[:, None], **how) @ self.value_matrix

    def make_cache(
        self,
        batch: int,
        capacity: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> LatentCache:
        """Reserve the cache of this layer.

        Args:
            batch: Sequences side by side.
            capacity: Most positions that are ever held.
            device: Where the memory is reserved.
            dtype: Its type: that of the activations.

        Returns:
            An empty cache.
        """
        width = latent_cache_numbers(rank=self.rank, rope_dim=self.rope_dim)
        return LatentCache(torch.zeros(batch, capacity, width, device=device, dtype=dtype))
