"""One stack for every objective: what differs is the batch, that is ids, mask and labels."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import HasSites, check_in_range
from companion.foundations.cross_entropy import IGNORE, linear_cross_entropy
from companion.pretraining.denoising._masks import right_to_left
from companion.pretraining.denoising._tokens import (
    Pair,
    Tokens,
    check_tokens,
    choose,
    rounded,
    shift_right,
    target_labels,
)
from companion.transformer.attention import Mask, causal, everything, prefix
from companion.transformer.block import Encoder, EncoderDecoder, PartFactory, TransformerConfig

__all__ = [
    "Batch",
    "UnifiedLM",
    "causal_batch",
    "joined_batch",
    "masked_batch",
    "prefix_batch",
    "reversed_batch",
    "seq2seq_loss",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """What one step of :class:`UnifiedLM` reads and must predict.

    Attributes:
        ids: Token ids (batch, n).
        real: ``True`` for tokens, ``False`` for padding, (batch, n).
        labels: What is to be predicted, (batch, k); -100 does not count.
        predict: At which of the n places, (batch, k); at all of them with ``None``.
        mask: Who may read whom, besides padding.
        positions: Where the tokens stand, (batch, n); 0, 1, 2, ... with ``None``.
        segments: Rows of the table of segments, (batch, n), for a model that has one.
    """

    ids: Tensor
    real: Tensor
    labels: Tensor
    mask: Mask
    predict: Tensor | None = None
    positions: Tensor | None = None
    segments: Tensor | None = None


class UnifiedLM(HasSites):
    r"""An encoder with an output layer, which every mask turns into another language model.

    The output layer is the table of tokens, unless the description says that it is not tied.
    UniLM, prefix language models and GLM are this model under other masks; so is BERT, without its
    transform before the output layer.

    Args:
        config: The description. Parameters are drawn as PyTorch's modules draw them; see
            :func:`companion.transformer.block.initialize_`.
        attention: Makes the self-attention of each layer, as for
            :class:`companion.transformer.block.Block`.
        feed_forward: Makes the feed-forward layer of each, likewise.

    Attributes:
        sites: ``logits``, for :func:`companion.core.watch`, besides those of the encoder.

    References:
        L. Dong et al., "UniLM", arXiv:1905.03197, section 2.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> from companion.pretraining.denoising import pad_rows
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> batch = causal_batch(pad_rows([[1, 2, 3, 4]]))
        >>> UnifiedLM(config)(batch).shape
        torch.Size([1, 3, 7])
    """

    sites = ("logits",)

    def __init__(
        self,
        config: TransformerConfig,
        *,
        attention: PartFactory | None = None,
        feed_forward: PartFactory | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, attention=attention, feed_forward=feed_forward)
        self.head = nn.Linear(config.dim, config.vocab, bias=False)
        if config.tied:
            self.head.weight = self.encoder.tokens.weight

    def untie(self) -> None:
        """Give the output layer a copy of the table of tokens; ``config.tied`` becomes False."""
        if self.config.tied:
            weight = self.head.weight
            self.head.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
            self.config = replace(self.config, tied=False)

    def hidden(self, batch: Batch) -> Float[Tensor, "batch k dim"]:
        """Compute what the output layer reads, at the places that are to be predicted."""
        out: Tensor = self.encoder(
            batch.ids,
            real=batch.real,
            segments=batch.segments,
            positions=batch.positions,
            mask=batch.mask,
        )
        if batch.predict is None:
            return out
        return out.gather(1, batch.predict[..., None].expand(-1, -1, out.shape[-1]))

    def forward(self, batch: Batch) -> Float[Tensor, "batch k vocab"]:
        """Compute logits, not normalized, at the places that are to be predicted."""
        return self.site("logits", self.head(self.hidden(batch)))

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the labels in nats a token."""
        return linear_cross_entropy(self.hidden(batch), self.head.weight.T, batch.labels)


def masked_batch(
    tokens: Tokens,
    *,
    mask_id: int,
    ratio: float = 0.15,
    mask: Mask | None = None,
    generator: torch.Generator,
) -> Batch:
    r"""Hide :math:`\mathrm{round}(rn)` tokens of each row, and ask for them.

    With the default mask it is masked language modeling. UniLM asks in the same way under each of
    its masks: give :func:`companion.transformer.attention.causal`, :func:`right_to_left` or
    :func:`companion.transformer.attention.prefix`.

    Args:
        tokens: The rows.
        mask_id: Id of the mask.
        ratio: The share :math:`r`, in [0, 1].
        mask: Who may read whom; everyone by default.
        generator: The source of randomness.

    Returns:
        The batch; a label stands at its own token.

    Raises:
        ValueError: If the ratio lies outside of [0, 1], or padding is not on the right.

    References:
        J. Devlin et al., arXiv:1810.04805, section 3.1, without the 80/10/10 rule of
        :doc:`/book/pretraining/masked`; L. Dong et al., arXiv:1905.03197, section 2.3.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("tokens", tokens)
    check_in_range("ratio", ratio, low=0.0, high=1.0)
    ids, real = tokens
    chosen = choose(rounded(ratio, real.sum(1)), real, generator=generator)
    most = int(rounded(ratio, torch.tensor(ids.shape[1])))
    where = (~chosen).long().argsort(dim=1, stable=True)[:, :most]
    return Batch(
        ids=ids.masked_fill(chosen, mask_id),
        real=real,
        labels=ids.masked_fill(~chosen, IGNORE).gather(1, where),
        predict=where,
        mask=everything() if mask is None else mask,
    )


def causal_batch(tokens: Tokens) -> Batch:
    """Ask at every token for the next one: a left-to-right language model.

    Args:
        tokens: The rows. What shall predict the first token has to be there: see :func:`enclose`.

    Returns:
        The batch.

    Raises:
        ValueError: If padding is not on the right.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("tokens", tokens)
    return Batch(
        ids=tokens.ids[:, :-1],
        real=tokens.real[:, :-1],
        labels=target_labels(tokens)[:, 1:],
        mask=causal(),
    )


def reversed_batch(tokens: Tokens) -> Batch:
    """Ask at every token for the one before: a right-to-left language model.

    Args:
        tokens: The rows.

    Returns:
        The batch.

    Raises:
        ValueError: If padding is not on the right.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("tokens", tokens)
    ids, real = tokens
    return Batch(
        ids=ids[:, 1:],
        real=real[:, 1:],
        labels=ids[:, :-1].masked_fill(~real[:, 1:], IGNORE),
        mask=right_to_left(),
        positions=torch.arange(1, ids.shape[1], device=ids.device).expand(len(ids), -1),
    )


def prefix_batch(tokens: Tokens, lengths: Integer[Tensor, " batch"]) -> Batch:
    """Let the first tokens of each row read each other, and ask for those that follow.

    Args:
        tokens: The rows.
        lengths: How many tokens of each row are given, 1 or more.

    Returns:
        The batch; the label of a token stands at the one before.

    Raises:
        ValueError: If padding is not on the right, or lengths are not one integer a row.

    References:
        C. Raffel et al., arXiv:1910.10683, section 3.2.1; L. Dong et al., arXiv:1905.03197.

    Book: :doc:`/book/pretraining/denoising`
    """
    batch = causal_batch(tokens)
    given = torch.arange(batch.ids.shape[1], device=batch.ids.device) < lengths[:, None] - 1
    return Batch(
        ids=batch.ids,
        real=batch.real,
        labels=batch.labels.masked_fill(given, IGNORE),
        mask=prefix(lengths),
    )


def joined_batch(pair: Pair, *, start: int) -> Batch:
    r"""Put source and target into one row: the source is a prefix of what is written.

    The target is read one place later, behind a start token, as in :func:`shift_right`. Positions
    count from 0 on either side, and segments 0 and 1 tell the sides apart.

    Args:
        pair: What is read, and what is to be written.
        start: Id of the start token.

    Returns:
        The batch, for a model with two segments or more.

    Raises:
        ValueError: If padding is not on the right.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("source", pair.source)
    check_tokens("target", pair.target)
    (read, here), (ids, there) = pair
    device, (batch, m), n = ids.device, read.shape, ids.shape[1]
    sides = [torch.arange(size, device=device) for size in (m, n)]
    return Batch(
        ids=torch.cat([read, shift_right(pair.target, start=start)], 1),
        real=torch.cat([here, there], 1),
        labels=target_labels(pair.target),
        predict=(m + sides[1]).expand(batch, n),
        mask=prefix(m),
        positions=torch.cat(sides).expand(batch, m + n),
        segments=(torch.arange(m + n, device=device) >= m).long().expand(batch, m + n),
    )


def seq2seq_loss(model: EncoderDecoder, pair: Pair, *, start: int) -> Float[Tensor, ""]:
    r"""Return the loss of an encoder-decoder that reads a source and writes a target.

    .. math:: L = -\frac{1}{n} \sum_t \log P(y_t \mid y_{<t}, \tilde x)

    Args:
        model: The model.
        pair: Source and target.
        start: Id that the decoder starts with: BART's end token, T5's padding.

    Returns:
        Mean cross-entropy in nats a target token.

    Raises:
        ValueError: If padding is not on the right, or the model refuses the ids.

    References:
        M. Lewis et al., arXiv:1910.13461, section 2; C. Raffel et al., arXiv:1910.10683.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("source", pair.source)
    check_tokens("target", pair.target)
    hidden = model.hidden(
        pair.source.ids,
        shift_right(pair.target, start=start),
        source_real=pair.source.real,
        target_real=pair.target.real,
    )
    return linear_cross_entropy(hidden, model.decoder.head.weight.T, target_labels(pair.target))
