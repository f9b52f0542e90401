r"""The attentions of this chapter as layers that ``attention=`` of a Transformer takes."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import check_count, rand, wide
from companion.efficiency.sparse_attention._blocks import block_sparse, check_layout
from companion.efficiency.sparse_attention._features import (
    elu_features,
    favor_attention,
    gaussian_frequencies,
)
from companion.efficiency.sparse_attention._hashing import lsh_attention, lsh_rotations
from companion.efficiency.sparse_attention._linear import (
    delta_run,
    divided,
    linear_run,
)
from companion.efficiency.sparse_attention._low_rank import linformer_attention
from companion.efficiency.sparse_attention._window import local_attention
from companion.transformer.attention import Mask, attention
from companion.transformer.attention._dense import each_head
from companion.transformer.block import PartFactory, TransformerConfig
from companion.transformer.multi_head import MultiHeadAttention
from companion.transformer.multi_head._attention import Rotation

__all__ = [
    "BlockSparseAttention",
    "GatedDeltaNet",
    "LSHAttention",
    "LinearAttention",
    "Linformer",
    "Performer",
    "StateCache",
    "WindowAttention",
    "WindowCache",
]


class _Seam(MultiHeadAttention):
    """What the layers share: projections as usual, and something else in the place of softmax."""

    sites: tuple[str, ...] = ("queries", "keys", "values", "heads")

    def __init__(self, dim: int, heads: int, **kind: Any) -> None:
        super().__init__(dim, heads, **kind)
        if self.dropout or self.relative is not None:
            what = "dropout of weights" if self.dropout else "relative positions"
            raise ValueError(f"{type(self).__name__} has no {what}: use MultiHeadAttention")

    @classmethod
    def factory(cls, **options: Any) -> PartFactory:
        """Return what ``attention=`` of a model takes.

        Args:
            options: Arguments of the layer, besides the sizes that the description names.

        Returns:
            A function of description and number of the layer. The parameters that the layer shares
            with usual attention have the same names, so a model's weights load.
        """

        def make(config: TransformerConfig, layer: int) -> nn.Module:
            return cls(
                config.dim,
                config.heads,
                kv_heads=config.kv_heads,
                head_dim=config.head_width,
                bias=config.attention_bias,
                scale=config.attention_scale,
                **options,
            )

        return make

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
        """Let every token read what the layer allows.

        Args:
            x: The tokens.
            context: Not for this layer.
            mask: What may be read, as the models give it: a rule, or a Bool tensor of four axes.
            bias: Not for this layer: there is no matrix of scores to add it to.
            rotation: Turns queries and keys by their positions.
            cache: What ``make_cache`` has made.

        Returns:
            One new vector for each token.

        Raises:
            ValueError: If the layer cannot do what is asked.
        """
        name = type(self).__name__
        if context is not None or bias is not None or self.prefix is not None:
            what = (
                "a context" if context is not None else "a bias" if bias is not None else "prefix"
            )
            raise ValueError(f"{name} does not take {what}: use MultiHeadAttention")
        if isinstance(mask, Tensor):
            mask = _rule_of(mask, 0 if cache is None else cache.length)
        Q, K, V = self._project(x, None, rotation, None)
        Z = self._read(x, Q, K, V, mask, cache)
        return self._mix(self.site("heads", Z))

    def _read(
        self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, mask: Mask | None, cache: Any
    ) -> Tensor:
        raise NotImplementedError

    def make_cache(
        self,
        batch: int,
        capacity: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """Refuse: the layer needs the whole text at once.

        Args:
            batch: Sequences side by side.
            capacity: Most positions that are ever held.
            device: Where the memory would be.
            dtype: Its type.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{type(self).__name__} has no cache: it needs the whole text at once")

    def _sized(self, heads: int, kv_heads: int) -> MultiHeadAttention:
        raise ValueError(
            f"heads of {type(self).__name__} cannot be taken out: do it in MultiHeadAttention"
        )


class WindowCache:
    """Keys and values of the sinks and of the latest tokens: a size that does not grow.

    Args:
        sinks: First tokens that stay.
        before: Latest tokens that stay, the newest not counted.

    Attributes:
        length: Tokens that have come.

    Book: :doc:`/book/efficiency/sparse_attention`
    """

    def __init__(self, sinks: int, before: int) -> None:
        self.sinks, self.before = sinks, before
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._places: list[int] = []

    def append(
        self, keys: Float[Tensor, "batch heads new key"], values: Float[Tensor, "batch heads new v"]
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Add tokens, and let go of those that no later one reads.

        Args:
            keys: Their keys.
            values: Their values.

        Returns:
            Keys and values that the new tokens may read, themselves among them, and the positions
            of these keys.
        """
        new = keys.shape[2]
        places = [*self._places, *range(self.length, self.length + new)]
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.length += new
        kept = [p < self.sinks or p >= self.length - self.before for p in places]
        index = torch.tensor([at for at, keep in enumerate(kept) if keep], device=keys.device)
        self.keys, self.values = (t.detach()[:, :, index.long()] for t in (keys, values))
        self._places = [p for p, keep in zip(places, kept, strict=True) if keep]
        return keys, values, places

    def truncate(self, length: int) -> None:
        """Forget everything, or nothing: what has left the window is gone.

        Args:
            length: 0 or :attr:`length`.

        Raises:
            ValueError: If it is another number.
        """
        if length not in (0, self.length):
            raise ValueError(
                f"a window of {self.length} tokens cannot go back to {length}: reset it instead"
            )
        if length == 0:
            self.keys = self.values = None
            self.length, self._places = 0, []

    def select(self, rows: Tensor) -> None:
        """Let sequence ``i`` go on from what sequence ``rows[i]`` held.

        Args:
            rows: One number for each sequence.
        """
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class WindowAttention(_Seam):
    r"""Self-attention within a window, with sinks: :func:`local_attention` as a layer.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        before: Keys on the left of a query that it reads.
        after: Keys on the right; 0 for a decoder.
        sinks: First positions that are read from everywhere. Where padding stands there, it is
            hidden and nothing takes its place: pad on the right.
        dilation: Distance between neighbors in the window.
        kind: What :class:`companion.transformer.multi_head.MultiHeadAttention` takes besides.

    Attributes:
        sites: ``queries``, ``keys``, ``values`` and ``heads``, as there; there are no scores.

    Raises:
        ValueError: If a number is out of range.

    References:
        Beltagy et al. 2020, arXiv:2004.05150; sinks: Xiao et al. 2024, arXiv:2309.17453. There
        positions are counted within the cache, here in the text.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> WindowAttention(12, 3, before=4, sinks=1)(torch.ones(1, 7, 12)).shape
        torch.Size([1, 7, 12])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        before: int,
        after: int = 0,
        sinks: int = 0,
        dilation: int = 1,
        **kind: Any,
    ) -> None:
        super().__init__(dim, heads, **kind)
        check_count("before", before, low=0)
        check_count("after", after, low=0)
        check_count("sinks", sinks, low=0)
        check_count("dilation", dilation)
        self.before, self.after, self.sinks, self.dilation = before, after, sinks, dilation

    def make_cache(
        self,
        batch: int,
        capacity: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """Make the cache of this layer: sinks and window, whatever the capacity.

        Args:
            batch: Sequences side by side.
            capacity: Most positions, which this layer does not need to know.
            device: Not needed: the cache lives where the tokens do.
            dtype: Likewise.

        Returns:
            An empty :class:`WindowCache`.

        Raises:
            ValueError: If the layer reads later tokens.
        """
        if self.after:
            raise ValueError(f"a layer that reads {self.after} later tokens cannot decode")
        return WindowCache(self.sinks, self.before * self.dilation)

    def _read(
        self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, mask: Mask | None, cache: Any
    ) -> Tensor:
        if cache is None or cache.length == 0:
            if cache is not None:
                cache.append(K, V)
            return local_attention(
                Q,
                K,
                V,
                before=self.before,
                after=self.after,
                sinks=self.sinks,
                dilation=self.dilation,
                mask=mask,
                scale=self.scale,
            )
        held, n = cache.length, Q.shape[2]
        K, V, places = cache.append(K, V)
        i = torch.arange(n, device=Q.device).view(-1, 1)
        j = torch.tensor(places, device=Q.device)
        back = i + held - j
        near = (back >= 0) & (back <= self.before * self.dilation) & (back % self.dilation == 0)
        allowed = (near | (j < self.sinks)) & (back >= 0)
        if mask is not None:
            # The model's rule speaks of the new queries and of all positions.
            b = torch.arange(Q.shape[0], device=Q.device).view(-1, 1, 1, 1)
            h = torch.arange(self.heads, device=Q.device).view(-1, 1, 1)
            allowed = allowed & mask.rule(b, h, i, j)
        return attention(Q, K, V, mask=allowed, scale=self.scale)


class BlockSparseAttention(_Seam):
    r"""Self-attention with a layout of blocks: :func:`block_sparse` as a layer.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        layout: Which block of queries reads which block of keys, for the longest text; a shorter
            one uses its first rows and columns. Kept as a buffer, so it is drawn once.
        block: Tokens of a block.
        kind: What :class:`companion.transformer.multi_head.MultiHeadAttention` takes besides.

    Raises:
        ValueError: If the layout is not a square Bool matrix.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> layout = torch.eye(3, dtype=torch.bool)
        >>> BlockSparseAttention(12, 3, layout=layout, block=4)(torch.ones(1, 7, 12)).shape
        torch.Size([1, 7, 12])
    """

    layout: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        layout: Bool[Tensor, "blocks blocks"],
        block: int,
        **kind: Any,
    ) -> None:
        super().__init__(dim, heads, **kind)
        check_count("block", block)
        check_layout(layout)
        self.block = block
        self.register_buffer("layout", layout.clone())

    def _read(
        self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, mask: Mask | None, cache: Any
    ) -> Tensor:
        blocks = -(-Q.shape[2] // self.block)
        layout = self.layout[:blocks, :blocks]
        return block_sparse(Q, K, V, layout, block=self.block, mask=mask, scale=self.scale)


class Linformer(_Seam):
    r"""Self-attention to mixtures of all tokens: :func:`linformer_attention` as a layer.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        length: Tokens of the longest text. It is part of the layer: the mixtures have a weight for
            each position.
        rank: Mixtures :math:`k`.
        sharing: ``"heads"``: one pair of matrices for all heads; ``"key_value"``: one matrix for
            keys and values too; ``"none"``: a pair for each head.
        kind: What :class:`companion.transformer.multi_head.MultiHeadAttention` takes besides.

    Raises:
        ValueError: If a number is out of range or the sharing is unknown.

    References:
        Wang et al. 2020, arXiv:2006.04768, sec. 4.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> Linformer(12, 3, length=7, rank=2)(torch.ones(1, 7, 12)).shape
        torch.Size([1, 7, 12])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        length: int,
        rank: int,
        sharing: str = "heads",
        **kind: Any,
    ) -> None:
        super().__init__(dim, heads, **kind)
        check_count("length", length)
        check_count("rank", rank)
        if sharing not in ("heads", "key_value", "none"):
            raise ValueError(f"sharing must be heads, key_value or none, got {sharing!r}")
        shape = (rank, length) if sharing != "none" else (heads, rank, length)
        place: dict[str, Any] = {"device": self.out.weight.device, "dtype": self.out.weight.dtype}
        self.E = nn.Parameter(torch.empty(shape, **place))
        self.F = self.E if sharing == "key_value" else nn.Parameter(torch.empty(shape, **place))
        for mix in {self.E, self.F}:
            nn.init.normal_(mix, std=rank**-0.5)

    def _read(
        self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, mask: Mask | None, cache: Any
    ) -> Tensor:
        n = Q.shape[2]
        if n > self.E.shape[-1]:
            raise ValueError(f"the layer mixes {self.E.shape[-1]} tokens at most, got {n}")
        causal, real = _split(mask, Q, "Linformer")
        if causal:
            raise ValueError("Linformer cannot be causal: each mixture holds later tokens too")
        K, V = (each_head(t, self.heads) for t in (K, V))
        E, F = self.E[..., :n], self.F[..., :n]
        return linformer_attention(Q, K, V, E=E, F=F, real=real, scale=self.scale)


class LSHAttention(_Seam):
    r"""Self-attention within hash buckets: :func:`lsh_attention` as a layer.

    Queries are the keys too, so the layer's map to keys is not used, and takes no part in training.

    Args:
        dim: Width of the tokens.
        heads: Heads.
        rounds: Rounds of hashing.
        n_buckets: Buckets of a round, an even number; as a rule, tokens divided by ``chunk``.
        chunk: Tokens of a chunk.
        generator: Where the directions are drawn from, once, and the maps after them. The
            directions are a buffer.
        kind: What :class:`companion.transformer.multi_head.MultiHeadAttention` takes besides.

    Raises:
        ValueError: If a number is out of range.

    References:
        Kitaev et al. 2020, arXiv:2001.04451. There the directions are drawn at each call.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> layer = LSHAttention(12, 3, rounds=2, n_buckets=4, chunk=3, generator=g)
        >>> layer(torch.ones(1, 7, 12)).shape
        torch.Size([1, 7, 12])
    """

    rotations: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        rounds: int,
        n_buckets: int,
        chunk: int,
        generator: torch.Generator,
        **kind: Any,
    ) -> None:
        target = kind.pop("device", None) or torch.get_default_device()
        super().__init__(dim, heads, device="meta", **kind)
        check_count("chunk", chunk)
        self.chunk = chunk
        drawn = lsh_rotations(
            self.head_dim,
            n_buckets,
            rounds,
            generator=generator,
            device=target,
            dtype=self.out.weight.dtype,
        )
        self.register_buffer("rotations", drawn)
        _draw_maps(self, generator, target)

    def _read(
        self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, mask: Mask | None, cache: Any
    ) -> Tensor:
        causal, real = _split(mask, Q, "LSHAttention")
        return lsh_attention(
            Q,
            each_head(V, self.heads),
            rotations=self.rotations,
            chunk=self.chunk,
            causal=causal,
            real=real,
            scale=self.scale,
        )


class Performer(_Seam):
    r"""Self-attention by positive random features: :func:`favor_attention` as a layer.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        features: Random features.
        orthogonal: Whether their frequencies are orthogonal.
        generator: Where they are drawn from, once, and the maps after them. The frequencies are a
            buffer.
        kind: What :class:`companion.transformer.multi_head.MultiHeadAttention` takes besides.

    Raises:
        ValueError: If a number is out of range.

    References:
        Choromanski et al. 2021, arXiv:2009.14794.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> layer = Performer(12, 3, features=7, generator=torch.Generator().manual_seed(0))
        >>> layer(torch.ones(1, 5, 12)).shape
        torch.Size([1, 5, 12])
    """

    omega: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        features: int,
        orthogonal: bool = True,
        generator: torch.Generator,
        **kind: Any,
    ) -> None:
        target = kind.pop("device", None) or torch.get_default_device()
        super().__init__(dim, heads, device="meta", **kind)
        drawn = gaussian_frequencies(
            features,
            self.head_dim,
            orthogonal=orthogonal,
            generator=generator,
            device=target,
            dtype=self.out.weight.dtype,
        )
        self.register_buffer("omega", drawn)
        _draw_maps(self, generator, target)

    def _read(
        self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, mask: Mask | None, cache: Any
    ) -> Tensor:
        causal, real = _split(mask, Q, "Performer")
        K, V = (each_head(t, self.heads) for t in (K, V))
        return favor_attention(
            Q, K, V, omega=self.omega, causal=causal, real=real, scale=self.scale
        )


class StateCache:
    """What a linear attention knows of the past: one matrix a head.

    Args:
        state: The matrices, shape (batch, heads, features, values), in float32 or better.

    Attributes:
        length: Tokens that have come.

    Book: :doc:`/book/efficiency/sparse_attention`
    """

    def __init__(self, state: Float[Tensor, "batch heads features values"]) -> None:
        self.state = state
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget everything, or nothing: a sum does not tell what went into it.

        Args:
            length: 0 or :attr:`length`.

        Raises:
            ValueError: If it is another number.
        """
        if length not in (0, self.length):
            raise ValueError(f"a state of {self.length} tokens cannot go back to {length}")
        if length == 0:
            self.state, self.length = torch.zeros_like(self.state), 0

    def select(self, rows: Tensor) -> None:
        """Let sequence ``i`` go on from what sequence ``rows[i]`` held.

        Args:
            rows: One number for each sequence.
        """
        self.state = self.state[rows]


class _Recurrent(_Seam):
    """A layer with a state."""

    chunk = 64

    def _empty(self, Q: Tensor) -> Tensor:
        return wide(Q).new_zeros(Q.shape[0], self.heads, self.head_dim, self._columns())

    def _columns(self) -> int:
        return self.value_dim

    def make_cache(
        self,
        batch: int,
        capacity: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """Make the state of this layer: its size does not depend on the capacity.

        Args:
            batch: Sequences side by side.
            capacity: Most positions, which this layer does not need to know.
            device: Where it is made.
            dtype: Type of the activations; the state is in float32 or better.

        Returns:
            An empty :class:`StateCache`.
        """
        like = torch.empty(batch, 1, 1, self.head_dim, device=device, dtype=dtype)
        return StateCache(self._empty(like))


class LinearAttention(_Recurrent):
    r"""Causal self-attention with features :math:`\mathrm{elu}(x) + 1`, with or without decay.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        retention: Whether head :math:`h = 0, 1, \dots` forgets by :math:`\alpha_h = 1 - 2^{-5-h}` a
            token, as RetNet does.
        kind: What :class:`companion.transformer.multi_head.MultiHeadAttention` takes besides.

    References:
        Katharopoulos et al. 2020, arXiv:2006.16236; Sun et al. 2023, arXiv:2307.08621, eq. (8).

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> from companion.transformer.attention import causal
        >>> LinearAttention(12, 3, retention=True)(torch.ones(1, 7, 12), mask=causal()).shape
        torch.Size([1, 7, 12])
    """

    def __init__(self, dim: int, heads: int, *, retention: bool = False, **kind: Any) -> None:
        super().__init__(dim, heads, **kind)
        self.retention = retention

    def _columns(self) -> int:
        return self.value_dim + 1  # the values, and the sum of the weights

    def _read(
        self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, mask: Mask | None, cache: Any
    ) -> Tensor:
        real = _must_be_causal(mask, Q, cache, "LinearAttention")
        q, k = elu_features(wide(Q)), elu_features(wide(each_head(K, self.heads)))
        k = k if real is None else k * real[:, None, :, None]
        v = wide(each_head(V, self.heads))
        v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)
        g = None
        if self.retention:
            power = torch.arange(self.heads, device=Q.device, dtype=q.dtype) + 5
            g = torch.log1p(-(2.0**-power)).view(1, -1, 1).expand(k.shape[:3])
        state = self._empty(Q) if cache is None else cache.state
        O, state = linear_run(q, k, v, g, state, "chunked", self.chunk)  # noqa: E741
        if cache is not None:
            cache.state, cache.length = state.detach(), cache.length + Q.shape[2]
        return divided(O).to(Q.dtype)


class GatedDeltaNet(_Recurrent):
    r"""A memory that corrects itself and forgets: :func:`delta_rule` as a layer.

    Gates come from the tokens, :math:`\beta = \sigma(xW_\beta)` and
    :math:`\log\alpha = -e^a \, \mathrm{softplus}(xW_\alpha + b)` for each head. Queries and keys
    have length 1. Of the published layer, the short convolution and the gated norm are left out.

    Args:
        dim: Width of the tokens.
        heads: Query heads.
        decay: Whether the memory forgets; without it the layer is DeltaNet.
        kind: What :class:`companion.transformer.multi_head.MultiHeadAttention` takes besides.

    References:
        Yang et al. 2025, arXiv:2412.06464.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> from companion.transformer.attention import causal
        >>> GatedDeltaNet(12, 3)(torch.ones(1, 7, 12), mask=causal()).shape
        torch.Size([1, 7, 12])
    """

    def __init__(self, dim: int, heads: int, *, decay: bool = True, **kind: Any) -> None:
        super().__init__(dim, heads, **kind)
        place: dict[str, Any] = {"device": self.out.weight.device, "dtype": self.out.weight.dtype}
        self.write = nn.Linear(dim, heads, bias=False, **place)
        self.forget = nn.Linear(dim, heads, **place) if decay else None
        self.log_rate = nn.Parameter(torch.zeros(heads, **place)) if decay else None

    def _read(
        self, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, mask: Mask | None, cache: Any
    ) -> Tensor:
        real = _must_be_causal(mask, Q, cache, "GatedDeltaNet")
        q = nn.functional.normalize(wide(Q), dim=-1) * self.scale
        k = nn.functional.normalize(wide(each_head(K, self.heads)), dim=-1)
        v = wide(each_head(V, self.heads))
        beta = wide(self.write(x)).sigmoid().mT
        g = None
        if self.forget is not None and self.log_rate is not None:
            rate = wide(self.log_rate).exp()[:, None]
            g = -rate * nn.functional.softplus(wide(self.forget(x))).mT
        if real is not None:  # padding writes nothing, and nothing is forgotten for it
            beta = beta * real[:, None]
            g = g if g is None else g * real[:, None]
        state = self._empty(Q) if cache is None else cache.state
        O, state = delta_run(q, k, v, beta, g, state, "chunked", self.chunk)  # noqa: E741
        if cache is not None:
            cache.state, cache.length = state.detach(), cache.length + Q.shape[2]
        return O.to(Q.dtype)


def _draw_maps(
    layer: MultiHeadAttention, generator: torch.Generator, device: str | torch.device
) -> None:
    """Make the maps of a layer that stands on ``meta``, by the law of ``nn.Linear``.

    So nothing is drawn from the global generator.
    """
    for line in (layer.qkv, layer.out):
        line.to_empty(device=device)
        reach = line.in_features**-0.5
        for parameter in line.parameters():
            u = rand(*parameter.shape, generator=generator, device=device, dtype=parameter.dtype)
            with torch.no_grad():
                parameter.copy_((2 * u - 1) * reach)


def _rule_of(table: Tensor, held: int) -> Mask:
    """Turn a table of four axes, some of which may have size 1, into the rule that reads it."""
    if table.dtype != torch.bool or table.ndim != 4:
        raise ValueError(
            "a mask must be a Mask or Bool of shape (batch, heads, n, keys), got "
            f"{table.dtype} of shape {tuple(table.shape)}"
        )
    B, H, N, M = (int(size > 1) for size in table.shape)
    past = N == 1 and (table.is_meta or not bool(table.triu(held + 1).any()))
    outer = (-float("inf"), float(held) if past else float("inf"))
    return Mask(lambda b, h, i, j: table[b * B, h * H, i * N, j * M], outer)


def _split(mask: Mask | None, Q: Tensor, name: str, held: int = 0) -> tuple[bool, Tensor | None]:
    """Tell whether a mask is causal, and which of the new keys it hides; refuse other masks.

    A rule is looked at in O(n) places of each head: all keys of the last query, and a few keys of
    each. So windows and documents are refused, though not every rule that one could invent.
    """
    if mask is None:
        return False, None
    batch, heads, n, _ = Q.shape
    causal = mask.outer[1] <= held
    if mask.inner == mask.outer and mask.outer == (-float("inf"), float(held)):
        return True, None
    b = torch.arange(batch, device=Q.device).view(-1, 1, 1, 1)
    h = torch.arange(heads, device=Q.device).view(1, -1, 1, 1)
    i = torch.arange(n, device=Q.device).view(1, 1, -1, 1)
    new = torch.arange(n, device=Q.device).view(1, 1, 1, -1)
    last = mask.rule(b, h, i[:, :, -1:], new + held).expand(batch, heads, 1, n)
    real = last[:, 0, 0]
    if not Q.is_meta:
        some = torch.cat([i, (i - 1).clamp(min=0), i // 2, 0 * i, (i + 1).clamp(max=n - 1)], -1)
        said = mask.rule(b, h, i, some + held).expand(batch, heads, n, 5)
        expected = real[:, some[0, 0]]
        if causal:
            expected = expected & (some <= i)[0]
        alike = torch.equal(last, real[:, None, None].expand_as(last))
        if not alike or not torch.equal(said, expected[:, None].expand_as(said)):
            raise ValueError(f"{name} takes a causal mask and padding only, got another rule")
    return causal, real


def _must_be_causal(mask: Mask | None, Q: Tensor, cache: Any, name: str) -> Tensor | None:
    held = 0 if cache is None else cache.length
    causal, real = _split(mask, Q, name, held)
    if not causal and Q.shape[2] > 1:  # one token has no later one, and its mask may be left out
        raise ValueError(f"{name} reads the past only: give a causal mask, as decoders do")
    return real
