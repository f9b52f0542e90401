"""Tuning by what is read: learned rows before the text, in every layer or at the input alone."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import check_count, check_in_range, check_shape, randint, randn
from companion.pretraining.transfer._freezing import freeze
from companion.transformer.block import Decoder, Encoder
from companion.transformer.multi_head import MultiHeadAttention

__all__ = ["PrefixTuning", "PromptTuning", "add_prefix", "remove_prefix"]


class PrefixTuning(nn.Module):
    r"""Learned keys and values that every query of one attention layer may read.

    They stand before the keys of the text and have no position. Held as
    the attribute ``prefix`` of a layer, they are read
    whatever the mask says; with a cache, they are not stored in it.

    Args:
        attention: The layer that they are made for; its sizes are taken.
        length: Number :math:`p` of learned positions.
        generator: Draws them from a normal distribution.
        std: Its standard deviation, 0 or more.

    Attributes:
        keys: Shape (kv_heads, p, head_dim).
        values: Shape (kv_heads, p, value_dim).

    Raises:
        ValueError: If a number is out of range.

    References:
        Li and Liang 2021, arXiv:2101.00190, eq. 3. They train a network whose output are the keys
        and values, for stability, and throw it away afterwards; here keys and values are trained
        themselves, as in Liu et al. 2022, arXiv:2110.07602 (P-tuning v2).

    Book: :doc:`/book/pretraining/transfer`
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        *,
        length: int,
        generator: torch.Generator,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        check_count("length", length)
        check_in_range("std", std, low=0.0, open_high=True)
        weight = attention.qkv.weight
        shape = (attention.kv_heads, length)
        keys, values = (
            randn(*shape, width, generator=generator, device=weight.device, dtype=weight.dtype)
            for width in (attention.head_dim, attention.value_dim)
        )
        self.keys = nn.Parameter(std * keys)
        self.values = nn.Parameter(std * values)

    def extra_repr(self) -> str:
        """Name the length when the module is printed."""
        return f"length={self.keys.shape[1]}"


def add_prefix(
    model: nn.Module, *, length: int, generator: torch.Generator, std: float = 0.02
) -> tuple[str, ...]:
    """Freeze a model and give each of its self-attention layers learned keys and values, in place.

    Args:
        model: An encoder, decoder, or anything that has their blocks inside.
        length: As in :class:`PrefixTuning`.
        generator: As there; the layers draw from it in order.
        std: As there.

    Returns:
        The names of the layers.

    Raises:
        ValueError: If the model has no attention layer, or has a prefix already.

    Book: :doc:`/book/pretraining/transfer`

    Example:
        >>> from companion.transformer.block import Decoder, TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> add_prefix(Decoder(config), length=5, generator=torch.Generator().manual_seed(0))
        ('blocks.0.attention', 'blocks.1.attention')
    """
    places = [
        (path, module)
        for path, module in model.named_modules()
        # Cross-attention keeps to its context.
        if isinstance(module, MultiHeadAttention) and path.rsplit(".", 1)[-1] != "cross"
    ]
    if not places:
        raise ValueError("the model has no attention layer that could have a prefix")
    if any(module.prefix is not None for _, module in places):
        raise ValueError("the model has a prefix already: remove it with remove_prefix first")
    made = [
        PrefixTuning(module, length=length, generator=generator, std=std) for _, module in places
    ]
    freeze(model)
    for (_, module), rows in zip(places, made, strict=True):
        module.prefix = rows
    return tuple(path for path, _ in places)


def remove_prefix(model: nn.Module) -> None:
    """Take the learned keys and values away, in place.

    Args:
        model: A model after :func:`add_prefix`. Its parameters stay frozen.

    Raises:
        ValueError: If there is no prefix.

    Book: :doc:`/book/pretraining/transfer`
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, MultiHeadAttention) and module.prefix is not None
    ]
    if not layers:
        raise ValueError("the model has no prefix: add one with add_prefix")
    for layer in layers:
        layer.prefix = None


class PromptTuning(nn.Module):
    r"""Learned embeddings before those of the text; the model behind them is frozen.

    The model reads :math:`[P; E_x]` with :math:`P` of shape :math:`(p, d)` trained. What it
    computes at the :math:`p` first positions is dropped.

    Args:
        model: An encoder or a decoder. It is kept, not copied, and frozen.
        length: Number :math:`p` of learned rows.
        generator: Chooses tokens of the vocabulary whose embeddings the rows start from.
        ids: The tokens to start from, in place of random ones: ``length`` of them.

    Attributes:
        prompt: The learned rows, shape (p, dim).

    Raises:
        ValueError: If the length is below 1 or not that of ``ids``.

    References:
        Lester, Al-Rfou and Constant 2021, arXiv:2104.08691, sec. 2; the start from embeddings of
        the vocabulary is theirs (sec. 3.2, there from the 5,000 most common tokens).

    Book: :doc:`/book/pretraining/transfer`
    """

    def __init__(
        self,
        model: Encoder | Decoder,
        *,
        length: int,
        generator: torch.Generator,
        ids: Integer[Tensor, " length"] | None = None,
    ) -> None:
        super().__init__()
        check_count("length", length)
        table = model.tokens.weight
        if ids is None:
            ids = randint(0, len(table), (length,), generator=generator, device=table.device)
        check_shape("ids", ids, (length,))
        freeze(model)
        self.model = model
        self.prompt = nn.Parameter(table.detach()[ids.to(table.device)].clone())

    def extra_repr(self) -> str:
        """Name the length when the module is printed."""
        return f"length={len(self.prompt)}"

    def forward(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n out"]:
        """Let the model read the prompt and then the text.

        Args:
            ids: Token ids of the text.
            real: ``True`` for tokens, ``False`` for padding, at either end.

        Returns:
            What the model returns at the positions of the text: hidden states of an encoder,
            logits of a decoder.
        """
        return self._read(self.model, ids, real)

    def hidden(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, "batch n dim"]:
        """Compute what the output layer of a decoder reads; of an encoder, what it returns.

        Args:
            ids: As in :meth:`forward`.
            real: As in :meth:`forward`.

        Returns:
            Hidden states at the positions of the text.
        """
        return self._read(getattr(self.model, "hidden", self.model), ids, real)

    def _read(self, read: object, ids: Tensor, real: Tensor | None) -> Tensor:
        check_shape("ids", ids, (None, None))
        batch, length = len(ids), len(self.prompt)
        # The table takes no narrower integers than these.
        tokens = self.model.tokens(ids if ids.dtype in (torch.int32, torch.int64) else ids.long())
        rows = torch.cat([self.prompt.expand(batch, -1, -1), tokens], 1)
        if real is not None:
            check_shape("real", real, tuple(ids.shape))
            real = torch.cat([real.new_ones(batch, length), real], 1)
        assert callable(read)
        out: Tensor = read(None, embeddings=rows, real=real)
        return out[:, length:]
