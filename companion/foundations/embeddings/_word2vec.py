r"""Word2Vec: skip-gram and continuous bag of words, both with negative sampling."""

import torch
from torch import Tensor

from companion.core import resolve_device
from companion.foundations.embeddings._blocks import (
    block_coefficients,
    block_gradients,
    block_loss,
    window_masks,
)
from companion.foundations.embeddings._corpus import Corpus
from companion.foundations.embeddings._engine import Chunk, Sampler, Schedule, initial_tables, run
from companion.foundations.embeddings._model import Embeddings

__all__ = ["train_cbow", "train_sgns"]


def train_sgns(
    corpus: Corpus,
    *,
    dim: int = 100,
    schedule: Schedule | None = None,
    generator: torch.Generator,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Embeddings:
    r"""Train skip-gram with negative sampling.

    Minimizes, by stochastic gradient descent over the text,

    .. math::

        -\sum_{(w,c)} \Big[\log\sigma(u_c \cdot v_w)
            + k\, \mathbb E_{n \sim P_n} \log\sigma(-u_n \cdot v_w)\Big].

    Args:
        corpus: The text.
        dim: Length of the vectors.
        schedule: Window, negatives, learning rate and the rest; the defaults by default.
        generator: The source of randomness. With one worker, it alone decides the result.
        device: Where the tables live; by default where the corpus is.
        dtype: Floating dtype of the tables.

    Returns:
        Word and context vectors.

    Raises:
        ValueError: If the device is not there.

    Numerics:
        Differs from the released word2vec in three ways, none of which changes the expected
        gradient: a block of centers shares its negatives, with weights that make up for it (Ji et
        al. 2016, arXiv:1604.04661); they are drawn in slices of the noise distribution; and all
        gradients of a step are taken at the same tables. A negative that equals the context word
        counts. Time a token grows with ``dim * (block + 2 * window + shared)``.

    References:
        Mikolov et al. 2013, arXiv:1310.4546.

    Book:
        :doc:`/book/foundations/embeddings`

    Example:
        >>> from companion.foundations.embeddings import corpus
        >>> text = corpus([["a", "rose", "is", "a", "rose"]], min_count=1)
        >>> train_sgns(text, dim=3, generator=torch.Generator().manual_seed(0)).vectors.shape
        torch.Size([3, 3])
    """
    plan = schedule or Schedule()
    place = corpus.ids.device if device is None else resolve_device(device)
    words, contexts = initial_tables(
        corpus, len(corpus.vocabulary), dim, generator=generator, device=place, dtype=dtype
    )
    sampler = Sampler(corpus, plan, device=place, predict="context")
    table, signs = block_coefficients(
        block=plan.block,
        window=plan.window,
        negatives=plan.negatives,
        shared=plan.shared,
        dtype=dtype,
    )
    table, signs = table.to(place), signs.to(place)
    blocks = sampler.blocks

    def step(chunk: Chunk, number: int, rate: float, report: bool) -> Tensor | None:
        centers, others = chunk.centers[number], chunk.others[number]
        v = words.index_select(0, centers).view(blocks, -1, dim)
        u = contexts.index_select(0, others).view(blocks, -1, dim)
        coefficients = table.index_select(0, chunk.rows[number]).view(blocks, plan.block, -1)
        loss = None
        if report:
            pairs = -coefficients.clamp(max=0).sum()
            loss = block_loss(v, u, coefficients, signs) / pairs.clamp(min=1)
        by_v, by_u = block_gradients(v, u, coefficients, signs)
        words.index_add_(0, centers, by_v.view(-1, dim), alpha=-rate)
        contexts.index_add_(0, others, by_u.view(-1, dim), alpha=-rate)
        return loss

    losses = run(sampler, step, generator=generator)
    return Embeddings(
        words=corpus.vocabulary.words, vectors=words, contexts=contexts, losses=losses
    )


def train_cbow(
    corpus: Corpus,
    *,
    dim: int = 100,
    schedule: Schedule | None = None,
    generator: torch.Generator,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Embeddings:
    r"""Train the continuous bag of words: predict a word from the mean of the words around it.

    Args:
        corpus: The text.
        dim: Length of the vectors.
        schedule: Window, negatives, learning rate and the rest; by default the defaults with a
            learning rate of 0.1. There is one prediction a window here, not one a pair, and the
            mean divides its gradient among the words, so that steps are smaller than in skip-gram.
        generator: The source of randomness. With one worker, it alone decides the result.
        device: Where the tables live; by default where the corpus is.
        dtype: Floating dtype of the tables.

    Returns:
        Word vectors (of the words around) and context vectors (of the word in the gap).

    Raises:
        ValueError: If the device is not there.

    Numerics:
        As :func:`train_sgns`. Context words receive the gradient of the mean, divided by the
        number of words; the released word2vec leaves the division out (İrsoy et al. 2021,
        arXiv:2012.15332).

    References:
        Mikolov et al. 2013, arXiv:1301.3781.

    Book:
        :doc:`/book/foundations/embeddings`
    """
    plan = schedule or Schedule(learning_rate=0.1)
    place = corpus.ids.device if device is None else resolve_device(device)
    words, contexts = initial_tables(
        corpus, len(corpus.vocabulary), dim, generator=generator, device=place, dtype=dtype
    )
    sampler = Sampler(corpus, plan, device=place, predict="center")
    masks = window_masks(block=plan.block, window=plan.window)
    masks = masks.to(place, dtype)
    means = masks / masks.sum(1, keepdim=True).clamp(min=1)
    # The center is the one positive of its row; each row has as many negatives as k, in weight.
    own = torch.eye(plan.block, device=place, dtype=dtype).repeat_interleave(
        (plan.window + 1) ** 2, dim=0
    )
    weight = own.new_full((len(own), plan.shared), plan.negatives / plan.shared)
    seen = (masks.sum(1, keepdim=True) > 0).to(dtype)
    table = torch.cat([-own, weight], dim=1) * seen
    signs = torch.cat([-torch.ones(plan.block), torch.ones(plan.shared)]).to(place, dtype)
    blocks = sampler.blocks

    def step(chunk: Chunk, number: int, rate: float, report: bool) -> Tensor | None:
        around, others, rows = chunk.around[number], chunk.others[number], chunk.rows[number]
        mean = means.index_select(0, rows).view(blocks, plan.block, -1)
        near = words.index_select(0, around).view(blocks, -1, dim)
        hidden = torch.bmm(mean, near)
        u = contexts.index_select(0, others).view(blocks, -1, dim)
        coefficients = table.index_select(0, rows).view(blocks, plan.block, -1)
        loss = None
        if report:
            gaps = -coefficients.clamp(max=0).sum()
            loss = block_loss(hidden, u, coefficients, signs) / gaps.clamp(min=1)
        by_hidden, by_u = block_gradients(hidden, u, coefficients, signs)
        by_near = torch.bmm(mean.mT, by_hidden)
        words.index_add_(0, around, by_near.view(-1, dim), alpha=-rate)
        contexts.index_add_(0, others, by_u.view(-1, dim), alpha=-rate)
        return loss

    losses = run(sampler, step, generator=generator)
    return Embeddings(
        words=corpus.vocabulary.words, vectors=words, contexts=contexts, losses=losses
    )
