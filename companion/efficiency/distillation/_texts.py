"""Distillation through texts: those that the teacher writes, and those that the student writes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_same_shape, check_shape
from companion.efficiency.distillation._divergences import generalized_jsd
from companion.foundations.cross_entropy import IGNORE, chunked_cross_entropy
from companion.models import Pick, generate, greedy
from companion.transformer.block import Decoder

__all__ = ["WrittenTexts", "gkd_loss", "sequence_kd_loss", "written_texts"]


class WrittenTexts(NamedTuple):
    """Prompts and what a model wrote after them.

    Attributes:
        ids: Tokens of the prompt, then those that were written.
        counts: ``True`` for what was written, with the token that ends a text, but nothing after.
    """

    ids: Integer[Tensor, "batch n"]
    counts: Bool[Tensor, "batch n"]


def written_texts(
    model: Decoder,
    prompts: Integer[Tensor, "batch n"],
    *,
    tokens: int,
    pick: Pick = greedy,
    stop: Sequence[int] = (),
) -> WrittenTexts:
    r"""Let a model write, and mark what it wrote.

    Written by the teacher, the texts are the data of sequence-level distillation: with
    :func:`~companion.models.greedy`, or a pick that searches, its likeliest texts; with
    :func:`~companion.models.sample` texts from its distribution. Written by the student, they are
    the data of on-policy distillation.

    Args:
        model: Who writes. Call ``eval()`` first where it has dropout.
        prompts: Beginnings of one length, for example a start token alone.
        tokens: How many tokens to write at most.
        pick: How the next token is chosen.
        stop: Tokens that end a text.

    Returns:
        The texts, without gradients.

    Raises:
        ValueError: As :func:`companion.models.generate`.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> written_texts(Decoder(config), torch.tensor([[1, 2]]), tokens=3).counts
        tensor([[False, False,  True,  True,  True]])
    """
    new = generate(model, prompts, tokens=tokens, pick=pick, stop=stop)
    ends = torch.isin(new, torch.tensor(list(stop), dtype=new.dtype, device=new.device))
    ended_before = ends.long().cumsum(1) - ends.long()
    counts = torch.cat([torch.zeros_like(prompts, dtype=torch.bool), ended_before == 0], 1)
    return WrittenTexts(torch.cat([prompts, new], 1), counts)


def _check(texts: WrittenTexts) -> None:
    check_shape("texts.ids", texts.ids, (None, None))
    check_same_shape("texts.ids", texts.ids, "texts.counts", texts.counts)


def sequence_kd_loss(student: Decoder, texts: WrittenTexts) -> Float[Tensor, ""]:
    r"""Return the student's surprise at texts that the teacher wrote.

    .. math:: L = -\frac1N \sum_t \log p_s(\hat y_t \mid \hat y_{<t})

    over the :math:`N` tokens that were written. The teacher's probabilities are not needed, so a
    teacher will do that shows its texts alone.

    Args:
        student: The model that learns.
        texts: From :func:`written_texts`, by the teacher.

    Returns:
        The loss in nats.

    Raises:
        ValueError: If shapes do not fit.

    References:
        Kim and Rush 2016, arXiv:1606.07947, sec. 3.2, with beam search.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> model = Decoder(config)
        >>> texts = written_texts(model, torch.tensor([[1, 2]]), tokens=3)
        >>> sequence_kd_loss(model, texts).shape
        torch.Size([])
    """
    _check(texts)
    targets = texts.ids[:, 1:].long().where(texts.counts[:, 1:], IGNORE)
    hidden = student.hidden(texts.ids[:, :-1])
    return chunked_cross_entropy(hidden, student.head.weight.T, targets)


def gkd_loss(
    student: Decoder,
    teacher: Decoder,
    texts: WrittenTexts,
    *,
    beta: float,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Return how far the student's answers are from the teacher's on given texts.

    .. math:: L = \frac1N \sum_t \frac{J_\beta\big(p_t(\cdot \mid y_{<t}),
       p_s(\cdot \mid y_{<t})\big)}{\beta(1 - \beta)}

    On texts that the student has written just now this is a step of on-policy distillation; mix in
    texts of another origin by calling it on those. No gradient passes through the choice of the
    texts.

    Args:
        student: The model that learns.
        teacher: The model that answers, over the same vocabulary. It gets no gradient.
        texts: From :func:`written_texts`, or any others.
        beta: From 0, the forward divergence, to 1, the reverse one: see :func:`generalized_jsd`.
        temperature: :math:`T > 0` of both.

    Returns:
        The loss in nats, a mean over the tokens that count.

    Raises:
        ValueError: If shapes do not fit, or nothing was written.

    References:
        Agarwal et al. 2024, arXiv:2306.13649, algorithm 1.

    Book: :doc:`/book/efficiency/distillation`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> model = Decoder(config)
        >>> texts = written_texts(model, torch.tensor([[1, 2]]), tokens=3)
        >>> abs(float(gkd_loss(model, model, texts, beta=0.5).detach())) < 1e-6
        True
    """
    _check(texts)
    read = texts.ids[:, :-1]
    with torch.no_grad():
        teacher_logits = teacher(read)
    return generalized_jsd(
        student(read),
        teacher_logits,
        beta=beta,
        scaled=True,
        temperature=temperature,
        real=texts.counts[:, 1:],
    )
