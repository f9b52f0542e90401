r"""What a masked language model says about a whole text."""

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import can_read, check_count, check_ids, check_shape, wide, wide_dtype
from companion.pretraining.masked._model import BertForPreTraining

__all__ = ["pseudo_log_likelihood"]


@torch.no_grad()
def pseudo_log_likelihood(
    model: BertForPreTraining,
    ids: Integer[Tensor, "batch n"],
    *,
    mask_id: int,
    scored: Bool[Tensor, "batch n"] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
    segments: Integer[Tensor, "batch n"] | None = None,
    words: Integer[Tensor, "batch n"] | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "batch n"]:
    r"""Score each token given all others, one blank at a time.

    .. math:: \mathrm{PLL}(x) = \sum_{i=1}^{n} \log P_\theta(x_i \mid x_{\setminus i})

    is the sum of a row. It is not :math:`\log P(x)`, and its exponential does not sum to 1 over
    all texts.

    Args:
        model: The model.
        ids: The texts, with their special tokens.
        mask_id: The id of ``[MASK]``.
        scored: Which positions to score: leave out special tokens and padding. By default all
            that are real.
        real: ``True`` for tokens, ``False`` for padding.
        segments: As the model reads them.
        words: The number of the word of each token. If given, the later tokens of the same word
            are masked as well: otherwise the end of a rare word makes its beginning look certain.
        batch_size: How many texts with a blank are read at once, 1 or more.

    Returns:
        Log-probabilities in nats, 0 or below; 0 where nothing was scored.

    Raises:
        ValueError: If shapes or ids do not fit.

    Numerics:
        A text of n tokens is read n times. Only the hidden state of the blank is multiplied by
        the vocabulary. The model is read as it is: call ``model.eval()`` before, if it has
        dropout.

    References:
        Salazar et al. 2020, arXiv:1910.14659, eq. 1; Besag 1975, doi:10.2307/2987782; with words:
        Kauf and Ivanova 2023, arXiv:2305.10588.

    Book: :doc:`/book/pretraining/masked`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=11, dim=6, layers=1, heads=3, ff_dim=7, context=9)
        >>> nats = pseudo_log_likelihood(
        ...     BertForPreTraining(config), torch.tensor([[4, 5, 6]]), mask_id=3)
        >>> nats.shape, bool((nats < 0).all())
        (torch.Size([1, 3]), True)
    """
    check_shape("ids", ids, (None, None))
    check_ids("ids", ids, model.config.vocab)
    check_count("mask_id", mask_id, low=0, high=model.config.vocab - 1)
    check_count("batch_size", batch_size)
    shape = tuple(ids.shape)
    wanted = torch.ones_like(ids, dtype=torch.bool) if real is None else real
    for name, given in (("scored", scored), ("real", real), ("words", words)):
        if given is not None:
            check_shape(name, given, shape)
    if scored is not None:
        wanted = wanted & scored
    every = torch.arange(ids.numel(), device=ids.device)
    # Blanks that nobody wants cost a pass each; where counting is free they are left out.
    flat = wanted.reshape(-1).nonzero().squeeze(1) if can_read(wanted) else every
    rows, columns = flat // shape[1], flat % shape[1]
    table: list[Tensor] = []
    place = torch.arange(shape[1], device=ids.device)
    for start in range(0, len(flat), batch_size):
        row, column = rows[start : start + batch_size], columns[start : start + batch_size]
        blank = place == column[:, None]
        if words is not None:
            mine = words[row]
            blank = blank | ((mine == mine.gather(1, column[:, None])) & (place > column[:, None]))
        read = torch.where(blank, mask_id, ids[row])
        hidden = model.encoder(
            read,
            real=None if real is None else real[row],
            segments=None if segments is None else segments[row],
        )
        at_blank = hidden[torch.arange(len(row), device=ids.device), column]
        logits = wide(model.token_logits(at_blank))
        original = ids[row, column].long()
        table.append(logits.log_softmax(-1).gather(1, original[:, None]).squeeze(1))
    weight = model.bias
    out = torch.zeros(shape, device=ids.device, dtype=wide_dtype(weight.dtype))
    if table:
        out = out.reshape(-1).index_put((flat,), torch.cat(table)).reshape(shape)
    return torch.where(wanted, out, 0.0)
