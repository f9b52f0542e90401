r"""Attacks that exchange tokens: a gradient guesses, the model tests, the string decides.

A gradient with respect to an embedding says what any exchange would do to first order, for all
words of the vocabulary by one product. What counts is the text that comes out: ids that no
tokenizer makes are no attack on anybody who sends text.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_ids, check_in_range, check_shape
from companion.foundations.cross_entropy import cross_entropy
from companion.knowledge.robustness._attacks import evaluating
from companion.models import TextEncoder
from companion.pretraining.transfer import pool

__all__ = ["Flips", "TextAttack", "flip_gains", "flip_text", "hotflip", "whole_words"]

#: Maps pooled vectors, (batch, dim), to logits.
Head = Callable[[Tensor], Tensor]


def flip_gains(
    gradient: Float[Tensor, "n dim"],
    ids: Integer[Tensor, " n"],
    table: Float[Tensor, "vocab dim"],
) -> Float[Tensor, "n vocab"]:
    r"""Estimate what each exchange adds to the loss: :math:`(E_w-E_{x_i})\cdot\nabla_{e_i}\ell`.

    Args:
        gradient: :math:`\nabla_{e_i}\ell` for each place, by the embedding of its token.
        ids: The tokens :math:`x_i`.
        table: Embeddings :math:`E`, one row a token.

    Returns:
        One gain for each place and token; 0 where the token is the one that stands there. Exact if
        the loss is linear in the embeddings, and positive where it would rise.

    Raises:
        ValueError: If shapes do not fit, or an id lies outside of the table.

    References:
        Ebrahimi et al. 2018, arXiv:1712.06751, sec. 3, for letters; Wallace et al. 2019,
        arXiv:1908.07125, eq. 2, for tokens.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> flip_gains(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.eye(2))
        tensor([[ 0., -1.]])
    """
    check_shape("gradient", gradient, (len(ids), table.shape[1]))
    check_ids("ids", ids, size=len(table))
    gains = gradient @ table.T
    return gains - gains.gather(1, ids[:, None])


class Flips(NamedTuple):
    """Single exchanges, best first.

    Attributes:
        places: Where.
        tokens: By which token.
        gains: By how much the loss rises, to first order.
    """

    places: Integer[Tensor, " k"]
    tokens: Integer[Tensor, " k"]
    gains: Float[Tensor, " k"]


def hotflip(
    gradient: Float[Tensor, "n dim"],
    ids: Integer[Tensor, " n"],
    table: Float[Tensor, "vocab dim"],
    *,
    k: int,
    places: Bool[Tensor, " n"] | None = None,
    words: Bool[Tensor, " vocab"] | None = None,
    cosine: float = -1.0,
) -> Flips:
    r"""Choose the :math:`k` exchanges of one token that promise most.

    Args:
        gradient: As in :func:`flip_gains`.
        ids: As in :func:`flip_gains`.
        table: As in :func:`flip_gains`.
        k: How many, 1 or more.
        places: ``True`` where a token may be exchanged. Special tokens are not to be.
        words: ``True`` for tokens that may come in.
        cosine: Least cosine between the embeddings of the old and the new token.

    Returns:
        Exchanges, fewer than :math:`k` if fewer are allowed. No token is exchanged for itself.

    Raises:
        ValueError: As in :func:`flip_gains`; if a number is out of its range.

    Book: :doc:`/book/knowledge/robustness`

    Example:
        >>> slope = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
        >>> hotflip(slope, torch.tensor([0, 0]), torch.eye(2), k=1)
        Flips(places=tensor([1]), tokens=tensor([1]), gains=tensor([2.]))
    """
    check_count("k", k)
    check_in_range("cosine", cosine, low=-1.0, high=1.0)
    gains = flip_gains(gradient, ids, table)
    allowed = torch.ones_like(gains, dtype=torch.bool)
    allowed = allowed & ~gains.isnan()  # a broken place hides no other
    allowed = allowed.scatter(1, ids[:, None], torch.zeros_like(ids[:, None], dtype=torch.bool))
    if places is not None:
        check_shape("places", places, (len(ids),))
        allowed = allowed & places[:, None]
    if words is not None:
        check_shape("words", words, (len(table),))
        allowed = allowed & words
    if cosine > -1:
        unit = torch.nn.functional.normalize(table, dim=1)
        allowed = allowed & (unit[ids] @ unit.T >= cosine)
    order = gains.masked_fill(~allowed, -torch.inf).flatten().topk(min(k, gains.numel()))
    there = order.values > -torch.inf
    best = order.indices[there]
    return Flips(best // len(table), best % len(table), order.values[there])


def whole_words(encoder: TextEncoder) -> Bool[Tensor, " vocab"]:
    """Find the tokens that are words of letters by themselves.

    Args:
        encoder: A text encoder whose tokenizer marks pieces inside of words by ``##``, as BERT's
            does.

    Returns:
        ``True`` for each token of two or more letters that begins a word; not for pieces, special
        or unused tokens, numbers and signs.

    Raises:
        ValueError: If the encoder has no tokenizer.

    Book: :doc:`/book/knowledge/robustness`
    """
    tokenizer = encoder.tokenizer
    if tokenizer is None:
        raise ValueError("the encoder has no tokenizer: load a checkpoint that has one")
    size = encoder.model.config.vocab
    names = [tokenizer.id_to_token(number) or "" for number in range(size)]
    return torch.tensor([len(name) > 1 and name.isalpha() for name in names])


class TextAttack(NamedTuple):
    """What an attack on one text has come to.

    Attributes:
        text: The changed text.
        flips: How many tokens were exchanged.
        fools_ids: Whether the model errs on the ids that were made.
        fools_text: Whether it errs on the text, tokenized again. This is success.
        survives: Whether tokenizing the text again gives the ids that were made.
        queries: Passes through the model.
    """

    text: str
    flips: int
    fools_ids: bool
    fools_text: bool
    survives: bool
    queries: int


def flip_text(
    encoder: TextEncoder,
    head: Head,
    text: str,
    label: int,
    *,
    flips: int = 3,
    tries: int = 24,
    cosine: float = 0.3,
    words: Bool[Tensor, " vocab"] | None = None,
) -> TextAttack:
    r"""Exchange whole words of a text until a classifier errs, greedily.

    At each of the steps one gradient proposes exchanges, the model is asked about the best of them,
    and the one with the largest loss stays. A word of several pieces is never touched, so that no
    half of it is left over.

    Args:
        encoder: Turns text into vectors.
        head: Maps pooled vectors to logits.
        text: The text.
        label: Its label.
        flips: How many words may be exchanged.
        tries: How many exchanges the model is asked about at each step.
        cosine: Least cosine between embeddings of old and new word. It keeps words near in form
            or use; it does not keep the meaning: antonyms are near.
        words: Tokens that may come in; by default :func:`whole_words`. Which words may go does not
            depend on it.

    Returns:
        The changed text, and whether it succeeds. A text that is answered wrongly from the start
        comes back as it was, with no flips.

    Raises:
        ValueError: If a number is out of its range, or the text is too long for the model.

    Book: :doc:`/book/knowledge/robustness`
    """
    check_count("flips", flips)
    check_count("tries", tries)
    whole = whole_words(encoder)
    model, tokenizer = encoder.model, encoder.tokenizer
    table = model.tokens.weight.detach()
    whole = whole.to(table.device)
    allowed = whole if words is None else words.to(table.device)
    target = torch.tensor([label], device=table.device)

    def logits(embeddings: Tensor) -> Tensor:
        real = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return head(pool(model(None, embeddings=embeddings), real, pooling=encoder.pooling))

    def wrong(ids: Tensor) -> bool:
        with torch.no_grad():
            return int(logits(table[ids][None]).argmax(-1)) != label

    with evaluating(model):
        first, _ = encoder.tokenize([text])
        ids, queries, done = first[0], 1, 0
        fooled = wrong(ids)
        while not fooled and done < flips:
            with torch.enable_grad():
                leaf = table[ids][None].clone().requires_grad_()
                loss = cross_entropy(logits(leaf), target)
                (slope,) = torch.autograd.grad(loss, leaf)
            found = hotflip(
                slope[0],
                ids,
                table,
                k=tries,
                places=_single(ids, whole, encoder),
                words=allowed,
                cosine=cosine,
            )
            queries += 1 + len(found.places)
            if not len(found.places):
                break
            tried = ids.repeat(len(found.places), 1)
            tried[torch.arange(len(tried)), found.places] = found.tokens
            with torch.no_grad():
                made = logits(table[tried])
                losses = cross_entropy(made, target.expand(len(tried)), reduction="none")
            best = int(losses.argmax())
            ids, done = tried[best], done + 1
            fooled = int(made[best].argmax()) != label
        if done == 0:
            return TextAttack(text, 0, fooled, fooled, True, queries)
        assert tokenizer is not None
        changed = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        again, _ = encoder.tokenize([changed], truncate=True)
        return TextAttack(
            text=changed,
            flips=done,
            fools_ids=fooled,
            fools_text=wrong(again[0]),
            survives=again[0].tolist() == ids.tolist(),
            queries=queries + 1,
        )


def _single(ids: Tensor, whole: Tensor, encoder: TextEncoder) -> Tensor:
    """Where a whole word of one piece stands: not followed by a piece that continues it."""
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    names = [tokenizer.id_to_token(number) or "" for number in ids.tolist()]
    follows = [name.startswith("##") for name in names[1:]] + [False]
    return whole[ids] & ~torch.tensor(follows, device=ids.device)
