r"""The loss of a language model: every token is predicted from the true tokens before it."""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_shape
from companion.foundations.cross_entropy import (
    IGNORE,
    chunked_cross_entropy,
    cross_entropy,
    linear_cross_entropy,
)
from companion.transformer.attention import documents as documents_mask
from companion.transformer.block import Decoder

__all__ = ["next_token_log_probs", "next_token_loss", "text_log_probs"]


def _positions(documents: Tensor) -> Tensor:
    """The place of each token within its run of equal document numbers."""
    place = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(first, place, 0).cummax(dim=1).values


def _pairs(
    ids: Tensor, real: Tensor | None, documents: Tensor | None
) -> tuple[Tensor, dict[str, object]]:
    """The shifted targets, and what the model must be told besides the ids."""
    check_shape("ids", ids, (None, None))
    check_count("tokens of each sequence", ids.shape[1], low=2)
    targets = ids[:, 1:].long()
    told: dict[str, object] = {}
    if real is not None:
        check_shape("real", real, tuple(ids.shape))
        if real.dtype != torch.bool:
            raise ValueError(f"real must be boolean, True for tokens, got {real.dtype}")
        # What padding predicts does not count, and neither does padding that is predicted.
        targets = targets.where(real[:, 1:] & real[:, :-1], IGNORE)
        told["real"] = real[:, :-1]
    if documents is not None:
        check_shape("documents", documents, tuple(ids.shape))
        # The first token of a document has no context in the row.
        targets = targets.where(documents[:, 1:] == documents[:, :-1], IGNORE)
        told["mask"] = documents_mask(documents[:, :-1])
        told["positions"] = _positions(documents[:, :-1])
    return targets, told


def next_token_loss(
    model: Decoder,
    ids: Integer[Tensor, "batch n"],
    *,
    real: Bool[Tensor, "batch n"] | None = None,
    documents: Integer[Tensor, "batch n"] | None = None,
    z_weight: float = 0.0,
    chunked: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    r"""Return the cross-entropy of every token given the true tokens before it.

    .. math:: L = -\frac1N \sum_t \log p_\theta(x_{t+1} \mid x_{1:t})

    over the :math:`N` pairs of neighbors that count. The model reads the first ``n - 1`` tokens
    once, and the causal mask makes that pass all :math:`n - 1` predictions: teacher forcing.

    Args:
        model: The language model.
        ids: Token ids, at least two a row. A row may be one longer than the model's context.
        real: ``True`` for tokens, ``False`` for padding on either side. A pair counts when both
            of its tokens are real.
        documents: For each token the number of its document, where several are packed into a row,
            for example from :func:`document_places`. A token then reads its own document only,
            positions start anew in each, and a pair counts when both of its tokens belong to one
            document: what comes first in a document is never predicted.
        z_weight: Weight of the z-loss.
        chunked: Whether the matrix of all logits is avoided, by
            :func:`companion.foundations.cross_entropy.chunked_cross_entropy`.
        reduction: ``"mean"`` over the pairs that count, or ``"sum"``.

    Returns:
        The loss in nats; 0 where no pair counts.

    Raises:
        ValueError: If shapes do not fit, an id is out of range, or a row is longer than the
            context plus one.

    Numerics:
        The chunked loss cannot be differentiated twice; pass ``chunked=False`` for that.

    References:
        Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 1,
        as a mean over tokens and with the sign of a loss.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> model = Decoder(config)
        >>> _ = model.head.weight.data.zero_()
        >>> loss = next_token_loss(model, torch.tensor([[1, 2, 3, 4, 5]]))
        >>> print(f"{loss:.4f}")  # log 7
        1.9459
    """
    targets, told = _pairs(ids, real, documents)
    hidden = model.hidden(ids[:, :-1], **told)  # type: ignore[arg-type]
    compute = chunked_cross_entropy if chunked else linear_cross_entropy
    return compute(hidden, model.head.weight.T, targets, z_weight=z_weight, reduction=reduction)


def next_token_log_probs(
    model: Decoder,
    ids: Integer[Tensor, "batch n"],
    *,
    real: Bool[Tensor, "batch n"] | None = None,
    documents: Integer[Tensor, "batch n"] | None = None,
) -> Float[Tensor, "batch pairs"]:
    r"""Return :math:`\log p_\theta(x_{t+1} \mid x_{1:t})` of each token but the first.

    Args:
        model: The language model.
        ids: As in :func:`next_token_loss`.
        real: As in :func:`next_token_loss`.
        documents: As in :func:`next_token_loss`.

    Returns:
        Log-probabilities in nats, float32 or better; 0 for pairs that do not count.

    Raises:
        ValueError: As in :func:`next_token_loss`.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> next_token_log_probs(Decoder(config), torch.tensor([[1, 2, 3, 4, 5]])).shape
        torch.Size([1, 4])
    """
    targets, told = _pairs(ids, real, documents)
    logits = model(ids[:, :-1], **told)
    return -cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


@torch.no_grad()
def text_log_probs(
    model: Decoder,
    ids: Integer[Tensor, " n"],
    *,
    start: int,
    stride: int | None = None,
    batch_size: int = 8,
) -> Float[Tensor, " n"]:
    r"""Score every token of a text of any length, each once.

    The text, with a start token before it, is cut into windows as long as the model's context.
    Each begins ``stride`` tokens after the one before, and scores the tokens that are new in it.
    So a token has at least ``context - stride`` tokens before it, as far as the text has them.

    Args:
        model: The language model. It is left in its mode: call ``eval()`` first where it has
            dropout.
        ids: The tokens of the text, without the start token.
        start: Token that stands before the text, so that its first token is scored as well.
        stride: New tokens of a window, from 1 to the context; by default half of the context.
        batch_size: Windows computed at once.

    Returns:
        Log-probabilities in nats, float32 or better, of all ``n`` tokens. Their sum belongs to
        the whole text, so :func:`companion.foundations.language_models.bits_per_byte` of them is
        comparable between tokenizers.

    Raises:
        ValueError: If there is no token, an id is out of range, or the stride is.

    Numerics:
        A stride s costs ``context / s`` times the operations of one pass without overlap.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> text_log_probs(Decoder(config), torch.arange(50) % 7, start=0).shape
        torch.Size([50])
    """
    check_shape("ids", ids, (None,))
    n, context = len(ids), model.config.context
    check_count("tokens of the text", n)
    check_count("batch_size", batch_size)
    stride = max(context // 2, 1) if stride is None else stride
    check_count("stride", stride, high=context)
    text = torch.cat([ids.new_full((1,), start), ids])
    # Window k scores targets up to `ends[k]` and reads up to `context` tokens before them.
    first = min(context, n)
    ends = [first, *range(first + stride, n, stride)]
    if ends[-1] < n:
        ends.append(n)
    places = torch.tensor(ends, device=ids.device)[:, None] - torch.arange(
        first, -1, -1, device=ids.device
    )
    new = [first, *(b - a for a, b in pairwise(ends))]
    scored: list[Tensor] = []
    for low in range(0, len(ends), batch_size):
        rows = next_token_log_probs(model, text[places[low : low + batch_size]])
        scored.extend(
            row[first - k :] for row, k in zip(rows, new[low : low + batch_size], strict=True)
        )
    return torch.cat(scored)
