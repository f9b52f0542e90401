r"""The ledger: what a Transformer computes and holds, from its description alone.

Symbols of the book: batch :math:`B`, new tokens :math:`n`, keys that are read :math:`m`, width
:math:`d`, heads :math:`h` and :math:`h_{kv}`, head width :math:`d_k`, feed-forward width
:math:`d_{ff}`, layers :math:`L`, vocabulary :math:`|\mathcal V|`.
"""

from dataclasses import dataclass, fields

from companion.core import check_count
from companion.transformer.block import TransformerConfig, parameter_count
from companion.transformer.block._config import Shaw

__all__ = [
    "Flops",
    "Memory",
    "crossover",
    "decode_bytes",
    "forward_flops",
    "matrix_weights",
    "memory_bytes",
    "training_flops",
]


@dataclass(frozen=True)
class Flops:
    r"""Floating-point operations of the matrix products, by where they happen.

    Attributes:
        projections: Maps to queries, keys and values, and the output map of attention.
        attention: :math:`QK^\top` and :math:`AV`, the only part that grows with the square of
            the length.
        feed_forward: The feed-forward layers.
        head: The map to the logits.
    """

    projections: int
    attention: int
    feed_forward: int
    head: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.projections + self.attention + self.feed_forward + self.head

    def __mul__(self, factor: int) -> "Flops":
        """Scale every entry."""
        return Flops(*(factor * getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they are for.

    Attributes:
        weights: The parameters.
        training: Gradients and the two moments of Adam: three times the weights.
        cache: Keys and values of all layers, for decoding.
        scores: One matrix of scores of one layer, all heads. The definition of attention holds
            such matrices, and a training step keeps one of them a layer; tiled and fused kernels
            hold none.
    """

    weights: int
    training: int
    cache: int
    scores: int


def matrix_weights(config: TransformerConfig, *, head: bool = True) -> int:
    r"""Count the entries of the matrices that every token is multiplied with.

    .. math::

        N = L \big( d d_k (2h + 2h_{kv}) + g \, d d_{ff} \big) + d |\mathcal V|

    with :math:`g = 3` matrices in a gated feed-forward layer and 2 in a plain one. The last term
    is the output layer, also where it is tied to the embedding. Lookup tables, biases and gains
    take part in no product.

    Args:
        config: The description of an encoder or a decoder.
        head: Whether there is an output layer; an encoder has none.

    Returns:
        The count.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=48, context=9)
        >>> matrix_weights(config), 2 * 12 * 12**2 + 12 * 7
        (3540, 3540)
    """
    d, width = config.dim, config.head_width
    attention = d * width * 2 * (config.heads + config.key_value_heads)
    feed_forward = (3 if config.gated else 2) * d * config.ff_dim
    return config.layers * (attention + feed_forward) + (d * config.vocab if head else 0)


def forward_flops(
    config: TransformerConfig,
    n: int,
    *,
    batch: int = 1,
    held: int = 0,
    logits: int | None = None,
) -> Flops:
    r"""Count the operations of a forward pass.

    .. math::

        2Bn \cdot L \big( d d_k (2h + 2h_{kv}) + g \, d d_{ff} \big)
        + 4Bnm \cdot L h d_k + 2B n' d |\mathcal V|

    with :math:`m = n + \text{held}` keys, and logits at :math:`n'` positions.

    Args:
        config: The description of an encoder or a decoder.
        n: New tokens of each sequence.
        batch: Sequences.
        held: Tokens in the cache, which are read but not computed again.
        logits: Positions of each sequence that get logits; all by default, 0 for an encoder.

    Returns:
        Operations. A causal mask is not taken into account: half of the scores are then computed
        for nothing, and kernels that skip them do up to twice as well.

    Raises:
        ValueError: If a size is out of range, or positions are Shaw's, whose own products are not
            in the ledger.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=48, context=9)
        >>> forward_flops(config, 5)
        Flops(projections=5760, attention=1200, feed_forward=11520, head=840)
    """
    check_count("n", n)
    check_count("batch", batch)
    check_count("held", held, low=0)
    logits = n if logits is None else logits
    check_count("logits", logits, low=0, high=n)
    if isinstance(config.positions, Shaw):
        raise ValueError("the ledger does not know the products of Shaw's relative positions")
    tokens, d, width = batch * n, config.dim, config.head_width
    projections = d * width * 2 * (config.heads + config.key_value_heads)
    feed_forward = (3 if config.gated else 2) * d * config.ff_dim
    return Flops(
        projections=2 * tokens * config.layers * projections,
        attention=4 * tokens * (n + held) * config.layers * config.heads * width,
        feed_forward=2 * tokens * config.layers * feed_forward,
        head=2 * batch * logits * d * config.vocab,
    )


def training_flops(
    config: TransformerConfig, n: int, *, batch: int = 1, head: bool = True
) -> Flops:
    r"""Count the operations of a forward and a backward pass.

    A product :math:`Y = XW` has two products as its backward pass,
    :math:`\bar X = \bar Y W^\top` and :math:`\bar W = X^\top \bar Y`, each as large as itself,
    and so have the products of attention. So training costs three times the forward pass:
    :math:`6ND` for :math:`D` tokens and :math:`N` matrix weights, and attention on top.

    Args:
        config: The description.
        n: Tokens of each sequence.
        batch: Sequences.
        head: Whether there is an output layer.

    Returns:
        Operations. Kernels that compute the scores again in the backward pass, to save memory, do
        one more product for attention, and checkpointing does a whole forward pass more.

    References:
        Kaplan et al. 2020, arXiv:2001.08361, sec. 2.1: there :math:`N` leaves out the embedding
        and the output layer. Here the output layer counts: it is a product like the others.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=48, context=9)
        >>> training_flops(config, 5).total / forward_flops(config, 5).total
        3.0
    """
    return forward_flops(config, n, batch=batch, logits=n if head else 0) * 3


def crossover(config: TransformerConfig) -> float:
    r"""Find the length from which the products of scores outweigh all other products of a layer.

    .. math:: n^* = \frac{d d_k (2h + 2h_{kv}) + g \, d d_{ff}}{2 h d_k}

    This is :math:`6d` for :math:`h d_k = d`, :math:`h_{kv} = h` and :math:`d_{ff} = 4d`.

    Args:
        config: The description.

    Returns:
        Tokens.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=48, context=9)
        >>> crossover(config)
        72.0
    """
    layer = matrix_weights(config, head=False) / config.layers
    return layer / (2 * config.heads * config.head_width)


def memory_bytes(config: TransformerConfig, n: int, *, batch: int = 1, itemsize: int = 4) -> Memory:
    r"""Count the bytes of weights, optimizer, cache and scores.

    .. math:: \text{cache} = 2 b B L h_{kv} d_k n, \qquad \text{scores} = b B h n^2

    for entries of :math:`b` bytes.

    Args:
        config: The description of a decoder. An encoder differs by its output layer alone.
        n: Tokens of each sequence.
        batch: Sequences.
        itemsize: Bytes of an entry: 4 for float32, 2 for bfloat16.

    Returns:
        Bytes.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=48, context=9)
        >>> memory_bytes(config, 5).cache
        480
    """
    check_count("n", n)
    check_count("batch", batch)
    check_count("itemsize", itemsize)
    weights = itemsize * parameter_count(config, kind="decoder")
    row = config.layers * config.key_value_heads * config.head_width
    return Memory(
        weights=weights,
        training=3 * weights,
        cache=2 * itemsize * batch * n * row,
        scores=itemsize * batch * config.heads * n * n,
    )


def decode_bytes(config: TransformerConfig, held: int, *, batch: int = 1, itemsize: int = 4) -> int:
    r"""Count the bytes of weights and cache that a decoding step reads.

    .. math:: b \, \big( N + Bd + 2 B L h_{kv} d_k m \big)

    for :math:`N` parameters of a tied model, :math:`m` keys (the new one included) and entries of
    :math:`b` bytes. Every weight is read once, whatever the batch; every sequence reads its own
    cache, and one row of the embedding table.

    Args:
        config: The description of a decoder with rotary positions, or without any.
        held: Keys that each sequence reads, the new one included.
        batch: Sequences that are decoded side by side.
        itemsize: Bytes of an entry.

    Returns:
        Bytes.

    Book: :doc:`/book/transformer/cost`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=48, context=9)
        >>> decode_bytes(config, 5) - decode_bytes(config, 4)
        96
    """
    memory = memory_bytes(config, held, batch=batch, itemsize=itemsize)
    # The table of an untied model is looked up and not multiplied: only rows of it are read.
    table = 0 if config.tied else config.vocab * config.dim
    return memory.weights + itemsize * (batch * config.dim - table) + memory.cache
