r"""BERT for pre-training: an encoder, a head that fills blanks, a head that judges pairs."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from companion.core import check_count, check_ids, check_shape
from companion.foundations.cross_entropy import IGNORE
from companion.transformer.block import Encoder, LayerNorm, TransformerConfig
from companion.transformer.block._feed_forward import ACTIVATIONS

__all__ = ["BertForPreTraining", "BertLogits", "PreTrainingLoss"]


class BertLogits(NamedTuple):
    """What both heads say.

    Attributes:
        tokens: Logits of the token at each position.
        pair: Logits of "B follows A" (0) and "B does not" (1); ``None`` without that head.
    """

    tokens: Float[Tensor, "batch n vocab"]
    pair: Float[Tensor, "batch 2"] | None


class PreTrainingLoss(NamedTuple):
    """The loss of pre-training and its parts, in nats.

    Attributes:
        total: The sum of the parts, which is minimized.
        masked: Mean cross-entropy of the chosen tokens.
        pair: Mean cross-entropy of the pair labels; 0 if none are given.
    """

    total: Float[Tensor, ""]
    masked: Float[Tensor, ""]
    pair: Float[Tensor, ""]


def select_places(
    targets: Integer[Tensor, "*batch"], count: int
) -> tuple[Int[Tensor, " count"], Int[Tensor, " count"]]:
    """List the positions that have a target, in an array of fixed size.

    The number of chosen positions changes from batch to batch, and with it every shape behind
    them. A graph that is compiled once wants one shape: a fixed number of places, the last of
    which may be empty.

    Args:
        targets: Targets, -100 where there is none.
        count: Size of the result. Positions beyond it, in reading order, are dropped.

    Returns:
        Places in the flattened batch, and the targets there; an empty place is 0 with the target
        -100.

    Raises:
        ValueError: If the count is below 1.

    Numerics:
        A running sum and a scatter; no sorting and no synchronization.

    References:
        ``max_predictions_per_seq`` in the code of Devlin et al. 2019, arXiv:1810.04805.

    Book: :doc:`/book/pretraining/masked`

    Example:
        >>> select_places(torch.tensor([[-100, 7, -100], [5, -100, -100]]), 3)
        (tensor([1, 3, 0]), tensor([   7,    5, -100]))
    """
    check_count("count", count)
    flat = targets.reshape(-1).long()
    has = flat != IGNORE
    slot = has.long().cumsum(0) - 1
    slot = torch.where(has & (slot < count), slot, count)  # the rest share one further slot
    here = torch.arange(flat.shape[0], device=flat.device)
    places = torch.zeros(count + 1, dtype=torch.long, device=flat.device)
    kept = torch.full_like(places, IGNORE)
    return places.scatter(0, slot, here)[:count], kept.scatter(0, slot, flat)[:count]


class BertForPreTraining(nn.Module):
    r"""BERT with the heads of both pre-training tasks.

    The first head maps a hidden state :math:`h_i` to logits over the vocabulary with the table of
    token embeddings :math:`E`, the second maps that of the first token to two logits:

    .. math:: z_i = \mathrm{LayerNorm}\big(\phi(h_i W_T + b_T)\big) E^\top + b_V, \qquad
        s = \tanh(h_{\texttt{[CLS]}} W_P + b_P)\, W_S + b_S

    Args:
        config: The description of the encoder, whose activation the first head shares. Parameters
            are drawn as PyTorch's modules draw them: load weights, or initialize them.
        pair: Whether there is a second head.

    References:
        Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A; the transform before the
        vocabulary is in their code alone.

    Book: :doc:`/book/pretraining/masked`

    Example:
        >>> config = TransformerConfig(
        ...     vocab=11, dim=12, layers=2, heads=3, ff_dim=31, context=9, segments=2)
        >>> logits = BertForPreTraining(config)(torch.tensor([[1, 2, 3, 4, 5]]))
        >>> logits.tokens.shape, logits.pair.shape
        (torch.Size([1, 5, 11]), torch.Size([1, 2]))
    """

    def __init__(self, config: TransformerConfig, *, pair: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.transform = nn.Linear(config.dim, config.dim)
        self.transform_norm = LayerNorm(config.dim, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.pooler = nn.Linear(config.dim, config.dim) if pair else None
        self.pair = nn.Linear(config.dim, 2) if pair else None

    def forward(
        self,
        ids: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
    ) -> BertLogits:
        """Compute the logits of both heads, at every position.

        Args:
            ids: Token ids, ``[CLS]`` first.
            real: ``True`` for tokens, ``False`` for padding.
            segments: 0 for the first part of a pair, 1 for the second.

        Returns:
            The logits. Training needs them at few positions: :meth:`loss` computes no others.

        Raises:
            ValueError: As the encoder does.
        """
        hidden = self.encoder(ids, real=real, segments=segments)
        pair = None if self.pair is None else self.pair_logits(hidden)
        return BertLogits(self.token_logits(hidden), pair)

    def token_logits(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Apply the first head.

        Args:
            hidden: Hidden states, at any positions.

        Returns:
            Logits over the vocabulary.
        """
        activation = ACTIVATIONS[self.config.ff_activation]
        read = self.transform_norm(activation(self.transform(hidden)))
        return F.linear(read, self.encoder.tokens.weight, self.bias)

    def pair_logits(self, hidden: Float[Tensor, "batch n dim"]) -> Float[Tensor, "batch 2"]:
        """Apply the second head.

        Args:
            hidden: Hidden states of whole texts; the first position is read.

        Returns:
            Logits of "B follows A" (0) and "B does not" (1).

        Raises:
            ValueError: If the model has no such head.
        """
        if self.pooler is None or self.pair is None:
            raise ValueError("this model has no head for pairs: build it with pair=True")
        out: Tensor = self.pair(torch.tanh(self.pooler(hidden[:, 0])))
        return out

    def loss(
        self,
        ids: Integer[Tensor, "batch n"],
        targets: Integer[Tensor, "batch n"],
        labels: Integer[Tensor, " batch"] | None = None,
        *,
        real: Bool[Tensor, "batch n"] | None = None,
        segments: Integer[Tensor, "batch n"] | None = None,
        predictions: int | None = None,
    ) -> PreTrainingLoss:
        r"""Compute the loss of pre-training.

        .. math:: L = -\frac1{|\mathcal M|} \sum_{i \in \mathcal M} \log P(x_i \mid \tilde x)
            - \log P(y \mid \tilde x)

        the first mean over all chosen positions of the batch, the second over its pairs.

        Args:
            ids: The corrupted text :math:`\tilde x`.
            targets: The original tokens at the chosen positions, -100 elsewhere.
            labels: 0 where B follows A, 1 where it does not. Without them the loss has one part.
            real: ``True`` for tokens, ``False`` for padding.
            segments: 0 for the first part of a pair, 1 for the second.
            predictions: Number of positions of the batch that are predicted. By default those
                that have a target, whose number must be read from the device. A number given
                fixes all shapes; targets beyond it are dropped.

        Returns:
            The loss and its parts. Without any target the first part is 0.

        Raises:
            ValueError: If shapes or ids do not fit, or labels are given to a model without a head
                for pairs.

        Numerics:
            Hidden states are selected before the product with the vocabulary, which is the
            largest product of a small model: at a rate of 0.15 this saves 85% of it. Inside
            ``torch.compile`` and on the ``meta`` device, where nothing can be counted, a missing
            ``predictions`` means all positions.
        """
        check_shape("targets", targets, tuple(ids.shape))
        check_ids("targets", targets, self.config.vocab, ignore=IGNORE)
        hidden = self.encoder(ids, real=real, segments=segments)
        rows = hidden.reshape(-1, hidden.shape[-1])
        if predictions is None and (ids.is_meta or torch.compiler.is_compiling()):
            predictions = targets.numel()
        if predictions is None:
            flat = targets.reshape(-1).long()
            places = (flat != IGNORE).nonzero().squeeze(1)
            wanted = flat[places]
        else:
            places, wanted = select_places(targets, predictions)
        logits = self.token_logits(rows.index_select(0, places))
        summed = F.cross_entropy(logits, wanted, ignore_index=IGNORE, reduction="sum")
        masked = summed / (wanted != IGNORE).sum().clamp(min=1)
        if labels is None:
            return PreTrainingLoss(masked, masked, torch.zeros_like(masked))
        check_shape("labels", labels, (ids.shape[0],))
        check_ids("labels", labels, 2)
        pair = F.cross_entropy(self.pair_logits(hidden), labels.long())
        return PreTrainingLoss(masked + pair, masked, pair)
