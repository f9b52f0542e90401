r"""Which entity a mention means: candidates with priors, a bi-encoder, and what fits together.

A mention :math:`m` with its context :math:`c` has the candidates :math:`\Gamma(m)`. How often each
was meant is the *prior*; how well the vector of the context fits the vector of an entity is the
*context*. Log-linear, both together:

.. math::

    P(e\mid m,c)\propto e^{w\log P(e\mid m)+\tau\,h\cdot e}

"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import (
    can_read,
    check_count,
    check_finite,
    check_floating,
    check_in_range,
    check_several,
    check_shape,
    wide,
)
from companion.foundations.cross_entropy import cross_entropy

__all__ = [
    "CandidateIndex",
    "Candidates",
    "Disambiguator",
    "LinkScores",
    "coherent_links",
    "in_batch_loss",
    "link_log_probs",
    "link_scores",
]

NEVER = float("-inf")


class Candidates(NamedTuple):
    """Candidates of some mentions, the most frequent first.

    Attributes:
        ids: Numbers of the entities, shape ``"mentions k"``; -1 where there are fewer.
        log_prior: Logarithms of their priors, shape ``"mentions k"``; minus infinity there.
    """

    ids: Tensor
    log_prior: Tensor


@dataclass(frozen=True, eq=False)
class CandidateIndex:
    r"""What each name was found to mean, and how often: the table of candidates.

    The prior of an entity given a name, its *commonness*, is its share of the counts,

    .. math::

        P(e\mid m)=\frac{N(m,e)+\delta}{\sum_{e'}(N(m,e')+\delta)}

    with a count :math:`\delta` added for each candidate, so that one that was never counted keeps
    a finite logarithm.

    Args:
        counts: For each name, how often each entity was meant; entities are known by name.
        smoothing: The added count :math:`\delta`, above 0 unless all counts are.
        normalize: Turns a name into its key, here and in :meth:`lookup`.

    Attributes:
        entities: Names of all entities; an entity's number is its place.

    Raises:
        ValueError: If a count is negative or not finite, a name has no candidate, a count is 0
            without smoothing, or two names fall together.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> index = CandidateIndex({"Paris": {"the city": 9, "the hero": 1}}, smoothing=0.0)
        >>> index.lookup(["paris"], 2).log_prior.exp()
        tensor([[0.9000, 0.1000]])
    """

    counts: Mapping[str, Mapping[str, float]]
    smoothing: float = 0.5
    normalize: Callable[[str], str] = str.casefold

    def __post_init__(self) -> None:
        check_in_range("smoothing", self.smoothing, low=0.0, open_high=True)
        # A copy, so that counts and priors stay those of one moment.
        kept = {name: dict(meant) for name, meant in self.counts.items()}
        object.__setattr__(self, "counts", kept)
        numbers: dict[str, int] = {}
        table: dict[str, tuple[list[int], list[float]]] = {}
        for name, meant in self.counts.items():
            key = self.normalize(name)
            if key in table:
                raise ValueError(f"two names have the key {key!r}: add their counts first")
            if not meant or not all(0 <= count < math.inf for count in meant.values()):
                raise ValueError(f"{name!r} needs candidates with finite counts of 0 or more")
            ranked = sorted(meant.items(), key=lambda pair: -pair[1])
            ids = [numbers.setdefault(entity, len(numbers)) for entity, _ in ranked]
            weights = [count + self.smoothing for _, count in ranked]
            total = sum(weights)
            if min(weights) <= 0:
                raise ValueError(
                    f"{name!r} has a candidate with count 0, whose logarithm is minus infinity: "
                    "give smoothing, or leave it out"
                )
            table[key] = (ids, [weight / total for weight in weights])
        object.__setattr__(self, "_numbers", numbers)
        object.__setattr__(self, "_table", table)

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of all entities; an entity's number is its place."""
        numbers: dict[str, int] = self._numbers  # type: ignore[attr-defined]
        return tuple(numbers)

    def __contains__(self, name: object) -> bool:
        table: dict[str, object] = self._table  # type: ignore[attr-defined]
        return isinstance(name, str) and self.normalize(name) in table

    def number(self, entity: str) -> int:
        """The number of an entity.

        Raises:
            ValueError: If it is no candidate of any name.
        """
        numbers: dict[str, int] = self._numbers  # type: ignore[attr-defined]
        if entity not in numbers:
            raise ValueError(f"{entity!r} is not among the {len(numbers)} entities")
        return numbers[entity]

    def lookup(
        self, mentions: Sequence[str], k: int, *, dtype: torch.dtype = torch.float32
    ) -> Candidates:
        """The k most frequent candidates of each mention.

        Args:
            mentions: Names as they stand in a text.
            k: How many, 1 or more.
            dtype: Of the log-priors.

        Returns:
            Candidates; a mention that is not in the table has none. Priors are shares of all
            candidates, also of those that are cut off.

        Raises:
            ValueError: If mentions are one text, or k is below 1.
        """
        check_several("mentions", mentions)
        check_count("k", k)
        table: dict[str, tuple[list[int], list[float]]] = self._table  # type: ignore[attr-defined]
        ids = torch.full((len(mentions), k), -1)
        prior = torch.zeros(len(mentions), k, dtype=dtype)
        for row, mention in enumerate(mentions):
            found, shares = table.get(self.normalize(mention), ([], []))
            count = min(k, len(found))
            ids[row, :count] = torch.tensor(found[:count], dtype=torch.int64)
            prior[row, :count] = torch.tensor(shares[:count], dtype=dtype)
        return Candidates(ids, prior.log())


def link_log_probs(
    mentions: Float[Tensor, "batch dim"],
    entities: Float[Tensor, "batch k dim"],
    *,
    log_prior: Float[Tensor, "batch k"] | None = None,
    real: Bool[Tensor, "batch k"] | None = None,
    scale: float | Float[Tensor, ""] = 1.0,
    prior_weight: float | Float[Tensor, ""] = 1.0,
    nil: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, "batch choices"]:
    r"""Probabilities of the candidates: :math:`\mathrm{softmax}(w\log P(e\mid m)+\tau\,h\cdot e)`.

    Args:
        mentions: Vectors :math:`h` of mentions in their contexts.
        entities: Vectors of the candidates of each; where there is none, what stands there is not
            looked at.
        log_prior: Logarithms of their priors; minus infinity for one that does not exist.
        real: Which candidates exist; all with a finite prior if left out.
        scale: Factor :math:`\tau` of the inner products.
        prior_weight: Factor :math:`w` of the log-priors; 0 leaves the context alone.
        nil: Score of *none of these*. It is then the last choice, and a mention without candidates
            has that one alone.

    Returns:
        Logarithms; over k choices, or k + 1 with ``nil``. Without ``nil``, a mention without
        candidates has minus infinity throughout. A NaN of a mention or of a candidate that exists
        makes its row NaN.

    Raises:
        ValueError: If shapes do not fit, or ``real`` is not boolean.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> h, e = torch.tensor([[1.0]]), torch.tensor([[[0.0], [1.0]]])
        >>> link_log_probs(h, e, log_prior=torch.tensor([[0.9, 0.1]]).log()).exp()
        tensor([[0.7680, 0.2320]])
    """
    check_floating("mentions", mentions)
    batch, k, dim = entities.shape if entities.ndim == 3 else (0, 0, 0)
    check_shape("entities", entities, (None, None, None))
    check_shape("mentions", mentions, (batch, dim))
    every = torch.ones(batch, k, dtype=torch.bool, device=entities.device)
    exists = every if real is None else real
    check_shape("real", exists, (batch, k))
    if exists.dtype != torch.bool:
        raise ValueError(f"real must be boolean, got {exists.dtype}: compare it, real != 0")
    if log_prior is not None:
        check_shape("log_prior", log_prior, (batch, k))
        exists = exists & (log_prior != NEVER)  # a NaN is a fault, and no missing candidate
    # Zeros where none is: 0 times NaN would reach the gradient of the mention.
    vectors = torch.where(exists[..., None], wide(entities), 0.0)
    score = torch.einsum("bd,bkd->bk", wide(mentions), vectors) * scale
    if log_prior is not None:
        score = score + prior_weight * log_prior.masked_fill(~exists, 0.0)
    score = score.masked_fill(~exists, NEVER)
    if nil is not None:
        other = torch.as_tensor(nil, dtype=score.dtype, device=score.device)
        score = torch.cat([score, other.expand(batch, 1)], 1)
    none = (score == NEVER).all(1, keepdim=True)
    return score.masked_fill(none, 0.0).log_softmax(1).masked_fill(none, NEVER)


class Disambiguator(nn.Module):
    r"""The bi-encoder's head with learned weights of prior and context, and of *none of these*.

    Args:
        dim: Width of the vectors.
        project: Learn a map of the mentions' vectors, which starts as the identity.
        nil: Learn a score of *none of these*, the last choice.

    Attributes:
        log_scale: Logarithm of the factor of the inner products, from 0.
        prior_weight: Weight of the log-priors, from 1.
        nil: Score of *none of these*, from 0, or ``None``.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> head = Disambiguator(3, nil=True)
        >>> head(torch.zeros(1, 3), torch.zeros(1, 2, 3)).exp().detach()
        tensor([[0.3333, 0.3333, 0.3333]])
    """

    def __init__(self, dim: int, *, project: bool = False, nil: bool = False) -> None:
        super().__init__()
        check_count("dim", dim)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.prior_weight = nn.Parameter(torch.ones(()))
        self.map = nn.Parameter(torch.eye(dim)) if project else None
        self.nil = nn.Parameter(torch.zeros(())) if nil else None

    def forward(
        self,
        mentions: Float[Tensor, "batch dim"],
        entities: Float[Tensor, "batch k dim"],
        *,
        log_prior: Float[Tensor, "batch k"] | None = None,
        real: Bool[Tensor, "batch k"] | None = None,
    ) -> Float[Tensor, "batch choices"]:
        """Log-probabilities of the choices; see :func:`link_log_probs`."""
        return link_log_probs(
            mentions if self.map is None else mentions @ self.map,
            entities,
            log_prior=log_prior,
            real=real,
            scale=self.log_scale.exp(),
            prior_weight=self.prior_weight,
            nil=self.nil,
        )


def in_batch_loss(
    mentions: Float[Tensor, "batch dim"],
    entities: Float[Tensor, "batch dim"],
    *,
    ids: Integer[Tensor, " batch"] | None = None,
    log_q: Float[Tensor, " batch"] | None = None,
    scale: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, ""]:
    r"""Train a bi-encoder with the other entities of the batch as negatives.

    .. math::

        \ell=-\frac1B\sum_i\log
            \frac{e^{\tau h_i\cdot e_i-\log q_i}}{\sum_je^{\tau h_i\cdot e_j-\log q_j}}

    A frequent entity stands in many batches, and so is a negative more often than a rare one. With
    :math:`q_j` the frequency of entity j in the batches, the correction takes that back.

    Args:
        mentions: Vectors :math:`h_i`.
        entities: Vectors :math:`e_i` of what they mean, in the same order.
        ids: Numbers of the entities. Another place of the same entity is then no negative.
        log_q: Logarithms of :math:`q_i`; no correction if left out.
        scale: Factor :math:`\tau`.

    Returns:
        The mean loss in nats.

    Raises:
        ValueError: If shapes do not fit, the batch is empty, or a frequency is 0, although its
            entity stands in the batch.

    References:
        Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling", doi:10.1145/3298689.3346996;
        Bengio and Senécal 2008, doi:10.1109/TNN.2007.912312.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> in_batch_loss(torch.zeros(2, 3), torch.zeros(2, 3))
        tensor(0.6931)
    """
    check_floating("mentions", mentions)
    batch, dim = mentions.shape if mentions.ndim == 2 else (0, 0)
    check_shape("mentions", mentions, (None, None))
    check_shape("entities", entities, (batch, dim))
    if batch == 0:
        raise ValueError("the batch is empty: give one mention at least")
    scores = wide(mentions) @ wide(entities).t() * scale
    if log_q is not None:
        check_shape("log_q", log_q, (batch,))
        check_finite("log_q", log_q)
        scores = scores - log_q
    if ids is not None:
        check_shape("ids", ids, (batch,))
        twin = ids[:, None] == ids
        twin = twin & ~torch.eye(batch, dtype=torch.bool, device=ids.device)
        scores = scores.masked_fill(twin, NEVER)
    return cross_entropy(scores, torch.arange(batch, device=scores.device))


def coherent_links(
    scores: Float[Tensor, "mentions k"],
    entities: Float[Tensor, "mentions k dim"],
    *,
    weight: float = 1.0,
    exact: bool | None = None,
    limit: int = 100_000,
) -> Integer[Tensor, " mentions"]:
    r"""Choose for all mentions of a text at once.

    .. math:: \arg\max_{e_1,\dots,e_M}\;\sum_is_i(e_i)+\lambda\sum_{i<j}e_i\cdot e_j

    Args:
        scores: Score of each candidate of each mention; minus infinity where there is none.
        entities: Their vectors; where there is no candidate, what stands there is not looked at.
        weight: The weight :math:`\lambda` of the pairs.
        exact: Try all choices, or change one mention after the other until nothing gets better.
            By default all are tried if there are at most ``limit``.
        limit: Most choices that are tried.

    Returns:
        The chosen candidate of each mention. One by one, a local best: it starts from the best of
        each alone, and the objective never falls.

    Raises:
        ValueError: If shapes do not fit, a mention has no candidate, a score or a vector of one
            is NaN or infinite, or ``exact`` asks for more than ``limit`` choices.

    References:
        Kulkarni et al. 2009, "Collective Annotation of Wikipedia Entities in Web Text",
        doi:10.1145/1557019.1557073.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> s = torch.tensor([[0.5, 0.0], [0.0, 0.1]])
        >>> e = torch.tensor([[[1.0], [-1.0]], [[1.0], [-1.0]]])
        >>> coherent_links(s, e)
        tensor([0, 0])
    """
    check_floating("scores", scores)
    check_shape("scores", scores, (None, None))
    check_shape("entities", entities, (*scores.shape, None))
    check_in_range("weight", weight)
    score, vectors = wide(scores.detach()), wide(entities.detach())
    mentions, k = score.shape
    vectors = torch.where((score != NEVER)[..., None], vectors, 0.0)
    check_finite("scores of candidates", score.masked_fill(score == NEVER, 0.0))
    check_finite("entities of candidates", vectors)
    if can_read(score) and not bool((score > NEVER).any(1).all()):
        raise ValueError("each mention needs a candidate with a finite score")
    # pair[i, a, j, b] is the product of candidate a of i and candidate b of j.
    pair = weight * torch.einsum("iad,jbd->iajb", vectors, vectors)
    rows = torch.arange(mentions, device=score.device)
    pair[rows, :, rows] = 0.0
    few = k**mentions <= limit
    if exact and not few:
        raise ValueError(f"{k}^{mentions} choices are more than limit = {limit}")
    if few if exact is None else exact:
        choices = torch.tensor(
            list(itertools.product(range(k), repeat=mentions)),
            dtype=torch.int64,
            device=score.device,
        )
        total = score[rows, choices].sum(1)
        for i, j in itertools.combinations(range(mentions), 2):
            total = total + pair[i, choices[:, i], j, choices[:, j]]
        return choices[total.argmax()]
    chosen = score.argmax(1)
    for _ in range(k * mentions):
        before = chosen
        for i in range(mentions):
            fit = score[i] + pair[i, :, rows, chosen].sum(-1)
            better = fit.max() > fit[chosen[i]]
            best = torch.where(better, fit.argmax(), chosen[i])
            chosen = torch.where(rows == i, best, chosen)
        if torch.equal(before, chosen):
            break
    return chosen


class LinkScores(NamedTuple):
    """How well mentions were linked, with the denominators apart.

    Attributes:
        recall_at_k: Share of the mentions with an entity whose entity is among the candidates.
        accuracy_given_recall: Share of those that were linked to it.
        accuracy_in_kb: Share of the mentions with an entity that were linked to it: the product of
            the two.
        nil_recall: Share of the mentions without an entity that were left alone.
        nil_precision: Share of those left alone that have none.
        accuracy: Share of all mentions with the right answer.
    """

    recall_at_k: float
    accuracy_given_recall: float
    accuracy_in_kb: float
    nil_recall: float
    nil_precision: float
    accuracy: float


def link_scores(
    true: Integer[Tensor, " mentions"],
    predicted: Integer[Tensor, " mentions"],
    candidates: Integer[Tensor, "mentions k"],
) -> LinkScores:
    """Score links with the losses of each step apart.

    Args:
        true: Numbers of the entities; -1 for none.
        predicted: Predicted numbers; -1 for none.
        candidates: The candidates that were offered; -1 where there were fewer.

    Returns:
        Shares; 0 where there is nothing to count.

    Raises:
        ValueError: If shapes do not fit.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> scores = link_scores(torch.tensor([4, 5]), torch.tensor([4, 9]),
        ...                      torch.tensor([[4, 9], [9, 8]]))
        >>> scores.recall_at_k, scores.accuracy_given_recall, scores.accuracy_in_kb
        (0.5, 1.0, 0.5)
    """
    check_shape("true", true, (None,))
    check_shape("predicted", predicted, tuple(true.shape))
    check_shape("candidates", candidates, (len(true), None))
    known = true >= 0
    offered = known & (candidates == true[:, None]).any(1)
    right = predicted == true
    alone = predicted < 0

    def ratio(part: Tensor, whole: Tensor) -> float:
        count = int(whole.sum())
        return int((part & whole).sum()) / count if count else 0.0

    return LinkScores(
        ratio(offered, known),
        ratio(right, offered),
        ratio(right & offered, known),
        ratio(alone, ~known),
        ratio(~known, alone),
        ratio(right, torch.ones_like(known)),
    )
