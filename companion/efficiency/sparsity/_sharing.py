r"""One set of weights in several places, and tables that are products."""

from dataclasses import replace
from typing import NamedTuple, TypeVar

from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import HasSites, check_count, check_ids
from companion.transformer.block import Encoder, LayerNorm, Learned, NoPositions, TransformerConfig
from companion.transformer.block._stack import Stack

__all__ = [
    "FactorizedEmbedding",
    "ParameterCount",
    "SharedEncoder",
    "parameter_uses",
    "share_blocks_",
]

Model = TypeVar("Model", bound=nn.Module)


class ParameterCount(NamedTuple):
    """How many numbers a model holds, and how many it uses.

    Attributes:
        stored: Each parameter once: what takes memory.
        used: Each parameter as often as modules hold it, such as a block that stands in twelve
            layers: what takes time.
    """

    stored: int
    used: int


def parameter_uses(model: nn.Module) -> ParameterCount:
    """Count the parameters of a model, shared ones once and as often as they stand in it.

    Args:
        model: Any module.

    Returns:
        Both numbers; they are equal where nothing is shared.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> layer = nn.Linear(3, 3, bias=False)
        >>> parameter_uses(nn.Sequential(layer, nn.ReLU(), layer))
        ParameterCount(stored=9, used=18)
    """
    stored = sum(p.numel() for p in model.parameters())
    used = sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False))
    return ParameterCount(stored, used)


def share_blocks_(model: Model, *, groups: int = 1) -> Model:
    """Let layers of a model share their parameters, in place.

    The layers are cut into groups of neighbors; the first block of a group stands in all of its
    layers.

    Args:
        model: A model whose layers are ``model.blocks``.
        groups: How many different blocks remain, a divisor of the number of layers.

    Returns:
        The same model. The gradient of a shared parameter is the sum over the layers.

    Raises:
        ValueError: If the model has no blocks or the groups do not fit.

    Numerics:
        Memory falls by the factor; operations stay what they were.

    References:
        Lan et al. 2020, arXiv:1909.11942, sec. 3.1.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> config = TransformerConfig(vocab=7, dim=12, layers=4, heads=3, ff_dim=31, context=9)
        >>> blocks = share_blocks_(Encoder(config)).blocks
        >>> len(blocks), len(set(map(id, blocks)))
        (4, 1)
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ValueError(f"{type(model).__name__} has no blocks to share")
    check_count("groups", groups, high=len(blocks))
    if len(blocks) % groups:
        raise ValueError(f"groups must divide the {len(blocks)} layers, got {groups}")
    size = len(blocks) // groups
    kept = [blocks[i - i % size] for i in range(len(blocks))]
    model.blocks = nn.ModuleList(kept)
    return model


class FactorizedEmbedding(nn.Module):
    r"""A table of embeddings that is a product of a narrow table and a matrix.

    .. math:: |\mathcal V|\,e + e\,d \quad\text{numbers in place of}\quad |\mathcal V|\,d

    Args:
        vocab: Number of token ids.
        narrow: Width :math:`e` of the table.
        dim: Width :math:`d` of what is returned.

    Attributes:
        table: ``nn.Embedding``, (vocab, narrow).
        up: ``nn.Linear`` without bias, from narrow to dim.

    Raises:
        ValueError: If a size is below 1.

    References:
        Lan et al. 2020, arXiv:1909.11942, sec. 3.1.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> parameter_uses(FactorizedEmbedding(30_000, 128, 768)).stored
        3938304
    """

    def __init__(self, vocab: int, narrow: int, dim: int) -> None:
        super().__init__()
        for name, size in (("vocab", vocab), ("narrow", narrow), ("dim", dim)):
            check_count(name, size)
        self.table = nn.Embedding(vocab, narrow)
        self.up = nn.Linear(narrow, dim, bias=False)

    def forward(self, ids: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """Look up the rows and widen them."""
        check_ids("ids", ids, self.table.num_embeddings)
        rows: Tensor = self.up(self.table(ids))
        return rows

    @property
    def weight(self) -> Float[Tensor, "vocab dim"]:
        """The whole table, formed."""
        return self.table.weight @ self.up.weight.T


class SharedEncoder(HasSites):
    r"""An encoder whose layers share their parameters and whose table is narrow: ALBERT's form.

    Embeddings of tokens, positions and segments of width :math:`e` are summed, normalized and
    mapped to width :math:`d`; then one block, or one for each group of layers, is applied
    :math:`L` times.

    Args:
        config: The description, with learned positions. Its ``vocab``, ``context`` and
            ``segments`` are those of the narrow tables.
        narrow: Width :math:`e`.
        groups: How many different blocks there are.

    Attributes:
        tokens: ``nn.Embedding``, (vocab, narrow).
        places: ``nn.Embedding``, (context, narrow).
        segments: ``nn.Embedding``, or ``None``.
        norm: The normalization at width :math:`e`.
        up: ``nn.Linear`` with a bias, from narrow to dim.
        encoder: The :class:`~companion.transformer.block.Encoder` with the shared blocks.

    Raises:
        ValueError: If sizes do not fit or the positions are of another kind.

    References:
        Lan et al. 2020, arXiv:1909.11942.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> import torch
        >>> config = TransformerConfig(vocab=7, dim=12, layers=4, heads=3, ff_dim=31, context=9,
        ...     positions=Learned(), norm_place="post")
        >>> model = SharedEncoder(config, narrow=5)
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 12])
    """

    def __init__(self, config: TransformerConfig, *, narrow: int, groups: int = 1) -> None:
        super().__init__()
        if config.positions != Learned():
            raise ValueError(f"positions must be Learned(), got {config.positions}")
        check_count("narrow", narrow)
        self.config = config
        self.tokens = nn.Embedding(config.vocab, narrow)
        self.places = nn.Embedding(config.context, narrow)
        self.segments = nn.Embedding(config.segments, narrow) if config.segments else None
        self.norm = LayerNorm(narrow, eps=config.norm_eps)
        self.up = nn.Linear(narrow, config.dim)
        inner = replace(
            config, vocab=1, positions=NoPositions(), segments=0, embedding_norm=False, tied=False
        )
        encoder = Encoder(inner)
        del encoder.tokens  # its vectors come from here
        self.encoder: Stack = share_blocks_(encoder, groups=groups)

    def forward(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Compute a vector for each token, in its context.

        Args:
            ids: Token ids.
            real: ``True`` for tokens, ``False`` for padding, which nobody reads.
            segments: Segment ids; 0 by default.

        Returns:
            Hidden states. Those at padding mean nothing.

        Raises:
            ValueError: If an id is out of range or the sequence is longer than the context.
        """
        check_ids("ids", ids, self.config.vocab)
        check_count("tokens of each sequence", ids.shape[1], high=self.config.context)
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        if self.segments is not None:
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        elif segments is not None:
            raise ValueError("this model has no segments: leave them out")
        hidden: Tensor = self.encoder(None, real=real, embeddings=self.up(self.norm(x)))
        return hidden
