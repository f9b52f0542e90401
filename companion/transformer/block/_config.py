"""What a Transformer is made of, as one frozen description."""

from dataclasses import dataclass
from typing import Literal, cast

from companion.core import check_count, check_in_range
from companion.transformer.block._feed_forward import Activation
from companion.transformer.positions import RopeScaling

__all__ = [
    "AlibiBias",
    "Learned",
    "NoPositions",
    "Rope",
    "Shaw",
    "Sinusoidal",
    "T5Buckets",
    "TransformerConfig",
    "parameter_count",
]

#: Feed-forward layers with a gate, and the activation of the gate.
GATED: dict[str, Activation] = {
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "reglu": "relu",
}
PLAIN: tuple[Activation, ...] = ("relu", "gelu", "gelu_tanh", "silu")


@dataclass(frozen=True)
class NoPositions:
    """Positions are not given to the model; a causal mask alone tells it some."""


@dataclass(frozen=True)
class Learned:
    """One learned vector a position is added to the embedding (BERT, GPT-2, BART).

    Attributes:
        offset: Rows of the table before the one of position 0; BART and OPT have 2.
    """

    offset: int = 0


@dataclass(frozen=True)
class Sinusoidal:
    """Fixed sines and cosines are added to the embedding (Vaswani et al. 2017).

    Attributes:
        base: Base of the wavelengths.
    """

    base: float = 10000.0


@dataclass(frozen=True)
class Rope:
    """Queries and keys are rotated by their positions (Llama).

    Attributes:
        base: Base of the angles.
        scaling: How the angles are changed for contexts longer than in training.
        interleaved: Whether components 2j and 2j + 1 form a pair, rather than j and j + d/2.
    """

    base: float = 10000.0
    scaling: RopeScaling | None = None
    interleaved: bool = False


@dataclass(frozen=True)
class AlibiBias:
    """Scores are lowered in proportion to distance (Press et al. 2022)."""


@dataclass(frozen=True)
class T5Buckets:
    """A learned bias for each head and bucket of distances, shared by all layers (T5).

    Attributes:
        buckets: How many.
        max_distance: From here on, distances share the last bucket.
    """

    buckets: int = 32
    max_distance: int = 128


@dataclass(frozen=True)
class Shaw:
    """A learned vector for each clipped distance is added to the keys (Shaw et al. 2018).

    Attributes:
        max_distance: Larger distances are clipped to it.
    """

    max_distance: int = 16


Positions = NoPositions | Learned | Sinusoidal | Rope | AlibiBias | T5Buckets | Shaw


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The description of an encoder, a decoder, or a pair of them.

    Attributes:
        vocab: Number of token ids.
        dim: Width of the residual stream.
        layers: Number of blocks; of each side in an encoder-decoder.
        heads: Query heads.
        ff_dim: Width inside the feed-forward layer.
        context: Longest sequence, in tokens.
        kv_heads: Key and value heads, a divisor of ``heads``; by default as many.
        head_dim: Components of a head; by default ``dim / heads``.
        norm: LayerNorm (``"layer"``) or RMSNorm (``"rms"``).
        norm_place: ``"pre"`` normalizes what a layer reads and, once more, the last output;
            ``"post"`` normalizes the sum after each layer.
        norm_eps: Added to the variance, or to the mean square.
        activation: ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, or, with a gate,
            ``"swiglu"``, ``"geglu"``, ``"geglu_tanh"``, ``"reglu"``.
        positions: How the model is told where tokens stand.
        attention_bias: Whether the maps of attention add biases.
        ff_bias: Whether those of the feed-forward layer do.
        embedding_norm: Whether the sum of the embeddings is normalized (BERT, BART).
        segments: Kinds of segments with an embedding each (BERT has 2); none with 0.
        tied: Whether the output layer of a decoder is the table of token embeddings.
        dropout: Share of components that are dropped, in training, from the sum of the embeddings
            and from the output of each layer before it is added.
        attention_dropout: Share of the attention weights that are dropped in training, before they
            weigh the values; the others are scaled up to keep their means. BERT and GPT-2 were
            trained with 0.1.
        attention_scale: Factor of the scores of attention; by default one over the root of the
            head's width. T5 has 1.
        logit_scale: Factor of the logits; 1 by default. T5 with a tied table has one over the
            root of ``dim``.

    Raises:
        ValueError: If a size is smaller than 1, heads do not divide, a name is unknown,
            ``positions`` is not one of the descriptions above, or rotary positions meet heads of
            odd width.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> llama = TransformerConfig(
        ...     vocab=100, dim=48, layers=2, heads=6, kv_heads=2, ff_dim=128, context=64,
        ...     norm="rms", activation="swiglu", attention_bias=False, ff_bias=False)
        >>> llama.positions
        Rope(base=10000.0, scaling=None, interleaved=False)
    """

    vocab: int
    dim: int
    layers: int
    heads: int
    ff_dim: int
    context: int
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-5
    activation: str = "gelu"
    positions: Positions = Rope()
    attention_bias: bool = True
    ff_bias: bool = True
    embedding_norm: bool = False
    segments: int = 0
    tied: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention_scale: float | None = None
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("vocab", "dim", "layers", "heads", "ff_dim", "context"):
            check_count(name, getattr(self, name))
        check_count("segments", self.segments, low=0)
        for name in ("kv_heads", "head_dim"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_in_range("norm_eps", self.norm_eps, low=0.0, open_high=True)
        for name in ("dropout", "attention_dropout"):
            check_in_range(name, getattr(self, name), low=0.0, high=1.0, open_high=True)
        for name in ("attention_scale", "logit_scale"):
            if getattr(self, name) is not None:
                check_in_range(name, getattr(self, name), low=0.0, open_low=True, open_high=True)
        if not isinstance(self.positions, Positions):
            raise ValueError(
                "positions must be a description such as Learned() or Rope(), "
                f"got {self.positions!r}"
            )
        if self.heads % self.key_value_heads:
            raise ValueError(f"kv_heads must divide heads, got {self.kv_heads} and {self.heads}")
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(f"heads must divide dim, got {self.heads} heads and dim {self.dim}")
        if isinstance(self.positions, Rope) and self.head_width % 2:
            raise ValueError(
                f"rotary positions turn pairs of components: a head of dim {self.dim} and "
                f"{self.heads} heads has {self.head_width}, which is odd"
            )
        for name, value, known in (
            ("norm", self.norm, ("layer", "rms")),
            ("norm_place", self.norm_place, ("pre", "post")),
            ("activation", self.activation, (*PLAIN, *GATED)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    @property
    def key_value_heads(self) -> int:
        """Key and value heads, the default filled in."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        """Components of a head, the default filled in."""
        return self.dim // self.heads if self.head_dim is None else self.head_dim

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate."""
        return self.activation in GATED

    @property
    def ff_activation(self) -> Activation:
        """The activation inside the feed-forward layer, or that of its gate."""
        return GATED.get(self.activation, cast(Activation, self.activation))


def parameter_count(
    config: TransformerConfig, *, kind: Literal["encoder", "decoder", "encoder-decoder"]
) -> int:
    r"""Count the parameters of a model from its description, without building it.

    For a decoder with :math:`d_{ff} = 4d`, without gates, biases and grouped keys, a layer has
    :math:`4d^2 + 8d^2 = 12 d^2` weights in its matrices.

    Args:
        config: The description.
        kind: Which model is made of it.

    Returns:
        The number of parameters; tied tables count once.

    Raises:
        ValueError: If the kind is unknown.

    Book: :doc:`/book/transformer/block`

    Example:
        >>> config = TransformerConfig(
        ...     vocab=50, dim=16, layers=1, heads=4, ff_dim=64, context=32,
        ...     norm="rms", attention_bias=False, ff_bias=False)
        >>> parameter_count(config, kind="decoder") == 12 * 16**2 + 50 * 16 + 3 * 16
        True
    """
    if kind not in ("encoder", "decoder", "encoder-decoder"):
        raise ValueError(f"kind must be encoder, decoder or encoder-decoder, got {kind!r}")
    d, ff, width = config.dim, config.ff_dim, config.head_width
    queries, keys = config.heads * width, config.key_value_heads * width
    attention = d * (queries + 2 * keys) + queries * d
    if config.attention_bias:
        attention += queries + 2 * keys + d
    ups = 2 if config.gated else 1
    feed_forward = (ups + 1) * d * ff
    if config.ff_bias:
        feed_forward += ups * ff + d
    norm = 2 * d if config.norm == "layer" else d
    block = attention + feed_forward + 2 * norm

    stack = config.layers * block + (norm if config.norm_place == "pre" else 0)
    stack += config.segments * d + (norm if config.embedding_norm else 0)
    places = config.positions
    if isinstance(places, Learned):
        stack += (config.context + places.offset) * d
    elif isinstance(places, T5Buckets):
        stack += places.buckets * config.heads
    elif isinstance(places, Shaw):
        stack += config.layers * (2 * places.max_distance + 1) * width

    tokens = config.vocab * d
    head = 0 if config.tied else tokens
    if kind == "encoder":
        return tokens + stack
    if kind == "decoder":
        return tokens + stack + head
    cross = config.layers * (attention + norm)
    return tokens + 2 * stack + cross + head
