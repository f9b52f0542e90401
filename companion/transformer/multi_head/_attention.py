"""Attention with several heads, which may share keys and values."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import HasSites, check_count, check_in_range, check_shape, wide_dtype
from companion.transformer.attention import Mask, attention
from companion.transformer.attention._dense import (
    drop_weights,
    each_head,
    masked_scores,
    softmax_or_zero,
)
from companion.transformer.attention._inputs import cast, full_precision, lift_bias, lift_mask
from companion.transformer.multi_head._cache import LayerCache

__all__ = ["MultiHeadAttention", "attention_at_sites"]

Rotation = Callable[[Tensor], Tensor]


@runtime_checkable
class Cache(Protocol):
    """What a layer needs of a cache: :class:`~companion.transformer.multi_head.LayerCache`."""

    length: int

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values, and return all that are to be read."""
        ...

    def held(self) -> tuple[Tensor, Tensor]:
        """Return the stored keys and values."""
        ...


@runtime_checkable
class Prefix(Protocol):
    """Keys and values that a layer reads besides those of its tokens."""

    @property
    def keys(self) -> Tensor:
        """Shape (kv_heads, length, head_dim)."""
        ...

    @property
    def values(self) -> Tensor:
        """Shape (kv_heads, length, value_dim)."""
        ...


def attention_at_sites(
    module: HasSites,
    Q: Float[Tensor, "batch heads n key"],
    K: Float[Tensor, "batch kv_heads m key"],
    V: Float[Tensor, "batch kv_heads m value"],
    *,
    mask: Mask | Bool[Tensor, "..."] | None = None,
    bias: Float[Tensor, "..."] | None = None,
    scale: float,
    dropout: float = 0.0,
    scores: str = "scores",
    weights: str = "weights",
) -> Float[Tensor, "batch heads n value"]:
    r"""Compute attention by the fastest way that the watched sites of a module allow.

    .. math:: A = \mathrm{softmax}(s \, Q K^\top + B + M), \qquad O = A V

    If nobody watches the module's sites of scores and weights, this is
    :func:`companion.transformer.attention.attention`. Otherwise both are made in full, and handed
    to the sites.

    Args:
        module: An attention layer that names both sites.
        Q: Queries.
        K: Keys.
        V: Values.
        mask: As in :func:`companion.transformer.attention.attention`.
        bias: As there.
        scale: As there.
        dropout: As there. What is dropped is dropped after the site of the weights.
        scores: Name of the site of the scores, which hold scale, bias and mask: forbidden keys
            have :math:`-\infty`. They are in float32 or better.
        weights: Name of the site of the weights.

    Returns:
        The outputs.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> from companion.core import watch
        >>> layer = MultiHeadAttention(6, 3, dtype=torch.float64)
        >>> with watch(layer, read=["weights"]) as seen:
        ...     y = layer(torch.ones(1, 2, 6, dtype=torch.float64))
        >>> seen["weights"][0, 0]
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64, grad_fn=<SelectBackward0>)
    """
    if not module.watched(scores, weights):
        return attention(Q, K, V, mask=mask, bias=bias, scale=scale, dropout=dropout)
    allowed, B = lift_mask(mask, Q, K), lift_bias(bias, Q, K)
    Q, K, V = cast(Q, K, V)
    high = wide_dtype(Q.dtype)
    with full_precision(Q):
        S = masked_scores(Q.to(high), K.to(high), allowed, B, scale)
        A = softmax_or_zero(module.site(scores, S)).to(Q.dtype)
        A = drop_weights(module.site(weights, A), dropout, None)
        Z = A.to(high) @ each_head(V.to(high), Q.shape[1])
    return Z.to(Q.dtype)


class MultiHeadAttention(HasSites):
    r"""Several attention heads side by side, and the map that mixes what they read.

    .. math::

        \mathrm{MHA}(X) = \mathrm{Concat}(Z_1, \dots, Z_h)\, W^O, \qquad
        Z_i = \mathrm{Attn}(X W^Q_i,\; C W^K_{g(i)},\; C W^V_{g(i)})

    :math:`C = X` for self-attention, and another sequence for cross-attention. With fewer
    key-value heads than query heads (grouped-query attention), query head :math:`i` reads group
    :math:`g(i) = \lfloor i \, h_{kv} / h \rfloor`.

    The three projections are one matrix: :attr:`qkv` is a :class:`torch.nn.Linear`, whose
    ``weight`` is the transpose of the book's :math:`[W^Q \; W^K \; W^V]`, with the query heads'
    rows first, then the keys', then the values'. :attr:`out` holds :math:`W^{O\top}`.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        kv_heads: Key and value heads, a divisor of ``heads``; by default as many.
        head_dim: Components of a query and a key; by default ``dim / heads``.
        value_dim: Components of a value; by default ``head_dim``.
        bias: Whether the projections to queries, keys and values add a bias.
        out_bias: Whether the output adds one; by default like ``bias``.
        scale: Factor of the scores; by default :math:`1/\sqrt{d_k}`.
        dropout: Share of the attention weights that are dropped in training, as in
            :func:`companion.transformer.attention.attention`.
        relative: Function of (queries, query positions, key positions), for example
            ``companion.transformer.positions.ShawRelative``, whose result is added to the scores
            before they are scaled. A module among the parameters when it is one.
        device: Where the parameters are made.
        dtype: Their type.

    Attributes:
        sites: What :func:`companion.core.watch` can read and replace: ``queries`` and ``keys``
            (batch, heads, n, head_dim), rotated, and ``values``, of the tokens that are read now,
            before a cache joins others to them; ``scores`` and ``weights`` (batch, heads, n, m),
            as in :func:`attention_at_sites`, with the keys of a prefix first; ``heads``, what each
            head has read, (batch, heads, n, value_dim).

    Raises:
        ValueError: If the heads do not divide as they must, or the dropout is not in [0, 1).

    References:
        Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.2. Groups: Ainslie et al. 2023,
        arXiv:2305.13245; a single group: Shazeer 2019, arXiv:1911.02150.

    Book: :doc:`/book/transformer/multi_head`

    Example:
        >>> layer = MultiHeadAttention(12, 6, kv_heads=2, dtype=torch.float64)
        >>> layer(torch.ones(1, 5, 12, dtype=torch.float64)).shape
        torch.Size([1, 5, 12])
    """

    sites: tuple[str, ...] = ("queries", "keys", "values", "scores", "weights", "heads")

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        relative: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("heads", heads)
        kv_heads = heads if kv_heads is None else kv_heads
        check_count("kv_heads", kv_heads)
        if heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {kv_heads} and {heads}")
        if head_dim is None:
            if dim % heads:
                raise ValueError(f"heads must divide dim, got {heads} heads and dim {dim}")
            head_dim = dim // heads
        value_dim = head_dim if value_dim is None else value_dim
        check_count("head_dim", head_dim)
        check_count("value_dim", value_dim)
        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        self.head_dim, self.value_dim = head_dim, value_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        check_in_range("dropout", dropout, low=0.0, high=1.0, open_high=True)
        self.dropout = dropout
        self.relative = relative
        rows = (heads + kv_heads) * head_dim + kv_heads * value_dim
        self.qkv = nn.Linear(dim, rows, bias=bias, device=device, dtype=dtype)
        out_bias = bias if out_bias is None else out_bias
        self.out = nn.Linear(heads * value_dim, dim, bias=out_bias, device=device, dtype=dtype)
        #: Keys and values before all others, such as
        #: ``companion.pretraining.transfer.PrefixTuning``; every query may read them.
        self.prefix: Prefix | None = None

    def extra_repr(self) -> str:
        """Name the sizes when the module is printed."""
        return (
            f"heads={self.heads}, kv_heads={self.kv_heads}, "
            f"head_dim={self.head_dim}, value_dim={self.value_dim}"
        )

    def forward(
        self,
        x: Float[Tensor, "batch n dim"],
        context: Float[Tensor, "batch m dim"] | None = None,
        *,
        mask: Mask | Bool[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | None = None,
        rotation: Rotation | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Let every token of ``x`` read the tokens of the context.

        Args:
            x: The tokens that ask.
            context: The tokens that are read; by default ``x`` itself.
            mask: Which keys a query may read (``True``); all by default. With a cache it covers
                all keys that are held.
            bias: Added to the scaled scores; broadcastable to (batch, heads, n, keys).
            rotation: Turns queries and keys of shape (batch, n, heads, head_dim) by their
                positions; for self-attention only.
            cache: Where keys and values are kept. With ``context``, they are computed at the
                first call and read from the cache afterwards.

        Returns:
            One new vector for each token of ``x``. A query that may read nothing gets the bias of
            :attr:`out` alone, or zero without one.

        Raises:
            ValueError: If shapes do not fit, or a rotation or relative positions meet a context.
        """
        Q, K, V = self._project(x, context, rotation, cache)
        bias = self._bias(Q, K, bias)
        if self.prefix is not None:
            K, V, mask, bias = _with_prefix(self.prefix, Q, K, V, mask, bias)
        dropout = self.dropout if self.training else 0.0
        Z = attention_at_sites(
            self, Q, K, V, mask=mask, bias=bias, scale=self.scale, dropout=dropout
        )
        return self._mix(self.site("heads", Z))

    def make_cache(
        self,
        batch: int,
        capacity: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> LayerCache:
        """Reserve the cache of this layer.

        Args:
            batch: Sequences side by side.
            capacity: Most positions that are ever held.
            device: Where the memory is reserved.
            dtype: Its type: that of the activations.

        Returns:
            An empty cache.
        """
        shape = (batch, self.kv_heads, capacity)
        return LayerCache(
            torch.zeros(*shape, self.head_dim, device=device, dtype=dtype),
            torch.zeros(*shape, self.value_dim, device=device, dtype=dtype),
        )

    def linear_maps(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Name the maps for :func:`companion.core.replace_linears`: three share one matrix.

        Returns:
            For ``qkv`` and ``out``, the rows of each map.
        """
        queries = self.heads * self.head_dim
        keys = queries + self.kv_heads * self.head_dim
        values = keys + self.kv_heads * self.value_dim
        fused = {"query": (0, queries), "key": (queries, keys), "value": (keys, values)}
        return {"qkv": fused, "out": {"out": (0, self.dim)}}

    def _project(
        self, x: Tensor, context: Tensor | None, rotation: Rotation | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, tokens, components)."""
        check_shape("x", x, (None, None, self.dim))
        batch, n, _ = x.shape
        heads, kv_heads = self.heads, self.kv_heads
        if context is None:
            keyed = (heads + kv_heads) * self.head_dim
            both = self.qkv(x)
            # Queries and keys are neighbors, so that one rotation turns both.
            qk = both[..., :keyed].view(batch, n, heads + kv_heads, self.head_dim)
            if rotation is not None:
                qk = rotation(qk)
            qk = qk.transpose(1, 2)
            V = both[..., keyed:].view(batch, n, kv_heads, self.value_dim).transpose(1, 2)
            Q, K, V = self._sited(qk[:, :heads], qk[:, heads:], V)
            return (Q, K, V) if cache is None else (Q, *cache.append(K, V))
        if rotation is not None or self.relative is not None:
            what = "a rotation" if rotation is not None else "relative"
            raise ValueError(
                f"{what} places queries and keys in one sequence, so it is not for a context"
            )
        check_shape("context", context, (batch, None, self.dim))
        queries = heads * self.head_dim
        weight, added = self.qkv.weight, self.qkv.bias
        first, rest = (None, None) if added is None else (added[:queries], added[queries:])
        Q = nn.functional.linear(x, weight[:queries], first)
        Q = Q.view(batch, n, heads, self.head_dim).transpose(1, 2)
        if cache is not None and cache.length:
            return self.site("queries", Q), *cache.held()
        keyed = kv_heads * self.head_dim
        kv = nn.functional.linear(context, weight[queries:], rest)
        m = context.shape[1]
        K = kv[..., :keyed].view(batch, m, kv_heads, self.head_dim).transpose(1, 2)
        V = kv[..., keyed:].view(batch, m, kv_heads, self.value_dim).transpose(1, 2)
        Q, K, V = self._sited(Q, K, V)
        return (Q, K, V) if cache is None else (Q, *cache.append(K, V))

    def _sited(self, Q: Tensor, K: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.site("queries", Q), self.site("keys", K), self.site("values", V)

    def _bias(self, Q: Tensor, K: Tensor, bias: Tensor | None) -> Tensor | None:
        """What is added to the scaled scores, relative positions included."""
        if self.relative is None:
            return bias
        n, m = Q.shape[2], K.shape[2]
        # The queries are the last n of the m positions: with a cache, earlier ones were read.
        keys = torch.arange(m, device=Q.device)
        added = self.scale * self.relative(Q, keys[m - n :], keys)
        return added if bias is None else added + bias

    def _mix(self, Z: Tensor) -> Tensor:
        """Concatenate the heads and apply the output map."""
        mixed: Tensor = self.out(Z.transpose(1, 2).flatten(2))
        return mixed

    @property
    def query_matrix(self) -> Float[Tensor, "heads dim head_dim"]:
        """:math:`W^Q_i` of each head, as a view."""
        rows = self.qkv.weight[: self.heads * self.head_dim]
        return rows.view(self.heads, self.head_dim, self.dim).mT

    @property
    def key_matrix(self) -> Float[Tensor, "kv_heads dim head_dim"]:
        """:math:`W^K_g` of each key-value head, as a view."""
        start = self.heads * self.head_dim
        rows = self.qkv.weight[start : start + self.kv_heads * self.head_dim]
        return rows.view(self.kv_heads, self.head_dim, self.dim).mT

    @property
    def value_matrix(self) -> Float[Tensor, "kv_heads dim value_dim"]:
        """:math:`W^V_g` of each key-value head, as a view."""
        rows = self.qkv.weight[(self.heads + self.kv_heads) * self.head_dim :]
        return rows.view(self.kv_heads, self.value_dim, self.dim).mT

    @property
    def output_matrix(self) -> Float[Tensor, "heads value_dim dim"]:
        """:math:`W^O_i`, the row block of :math:`W^O` that belongs to each head, as a view."""
        return self.out.weight.T.view(self.heads, self.value_dim, self.dim)

    def keep_heads(self, keep: Sequence[int]) -> "MultiHeadAttention":
        """Return a smaller layer with some of the heads, whose weights are copies.

        Args:
            keep: Query heads to keep, each once, in the order they shall have. Where heads share
                keys and values, whole groups in turn.

        Returns:
            A layer that computes what this one does with zeros in place of what the other heads
            have read, the site ``heads``.

        Raises:
            ValueError: If a head is missing, named twice, or leaves its group; or if the layer has
                a prefix, relative positions or LoRA, whose parameters may belong to heads.
        """
        if self.relative is not None:
            raise ValueError("heads of a layer with relative positions cannot be taken out")
        self._check_plain("heads of a layer", "taken out")
        check_count("kept heads", len(keep))
        for head in keep:
            check_count("head", head, low=0, high=self.heads - 1)
        if len(set(keep)) < len(keep):
            raise ValueError(f"each head can be kept once, got {list(keep)}")
        size = self.heads // self.kv_heads
        groups = [head // size for head in keep[::size]]
        if [head for group in groups for head in range(group * size, (group + 1) * size)] != list(
            keep
        ):
            raise ValueError(
                f"groups of {size} heads share keys and values: keep whole groups, got {list(keep)}"
            )
        smaller = self._sized(len(keep), len(groups))
        device = self.qkv.weight.device
        heads = torch.tensor(list(keep), device=device)
        shared = torch.tensor(groups, device=device)
        rows = torch.cat(
            [
                _rows(heads, self.head_dim, 0),
                _rows(shared, self.head_dim, self.heads * self.head_dim),
                _rows(shared, self.value_dim, (self.heads + self.kv_heads) * self.head_dim),
            ]
        )
        columns = _rows(heads, self.value_dim, 0)
        with torch.no_grad():
            smaller.qkv.weight.copy_(self.qkv.weight[rows])
            smaller.out.weight.copy_(self.out.weight[:, columns])
            if self.qkv.bias is not None:
                smaller.qkv.bias.copy_(self.qkv.bias[rows])
            if self.out.bias is not None:
                smaller.out.bias.copy_(self.out.bias)
        return smaller

    def _check_plain(self, what: str, done: str) -> None:
        """Refuse to rebuild a layer with parts that a new one would not have."""
        if self.prefix is not None:
            raise ValueError(f"{what} with a prefix cannot be {done}: remove it first")
        if not (isinstance(self.qkv, nn.Linear) and isinstance(self.out, nn.Linear)):
            raise ValueError(
                f"{what} whose maps were replaced, as LoRA does, cannot be {done}: "
                "put linear layers back first"
            )

    def _sized(self, heads: int, kv_heads: int) -> "MultiHeadAttention":
        """Make a layer like this one with other numbers of heads; its weights are yet to be set."""
        weight = self.qkv.weight
        made = MultiHeadAttention(
            self.dim,
            heads,
            kv_heads=kv_heads,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            bias=self.qkv.bias is not None,
            out_bias=self.out.bias is not None,
            scale=self.scale,
            dropout=self.dropout,
            device="meta",  # no initial weights are drawn: they would use up the global generator
            dtype=weight.dtype,
        ).to_empty(device=weight.device)
        for new, old in ((made.qkv, self.qkv), (made.out, self.out)):
            for parameter, like in zip(new.parameters(), old.parameters(), strict=True):
                parameter.requires_grad_(like.requires_grad)
        return made.train(self.training)


def _rows(heads: Tensor, width: int, start: int) -> Tensor:
    """Indices of the rows that belong to some heads."""
    return (start + heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()


def _with_prefix(
    prefix: Prefix,
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    mask: Mask | Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Put the prefix before the keys; masks allow it everywhere, and biases add nothing there."""
    batch, _, n, _ = Q.shape
    m, length = K.shape[2], prefix.keys.shape[1]
    if isinstance(mask, Mask):
        mask = mask.dense(n, m, device=Q.device)
    if mask is not None:
        # One column may stand for all keys.
        mask = mask.expand(*mask.shape[:-1], m)
        mask = torch.cat([mask.new_ones(*mask.shape[:-1], length), mask], -1)
    if bias is not None:
        bias = bias.expand(*bias.shape[:-1], m)
        bias = torch.cat([bias.new_zeros(*bias.shape[:-1], length), bias], -1)
    keys, values = (
        rows.to(K.dtype).expand(batch, -1, -1, -1) for rows in (prefix.keys, prefix.values)
    )
    return torch.cat([keys, K], 2), torch.cat([values, V], 2), mask, bias
