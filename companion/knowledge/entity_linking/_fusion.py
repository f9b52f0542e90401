r"""Bring vectors of entities into a model of text: ERNIE's fusion, a gate, and KnowBert's layer.

Words :math:`w_j` have the shape ``"batch n dim"``, entities :math:`e_k` have a width of their own.
What no entity belongs to passes through each of the three as it would without knowledge.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import can_read, check_count, check_shape

__all__ = ["ERNIEFusion", "GatedFusion", "KnowBertLayer", "first_tokens", "span_vectors"]


def _check_mask(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be boolean, got {mask.dtype}: compare it, {name} != 0")


def _dropped(vectors: Tensor, present: Tensor) -> Tensor:
    """Zeros, and no gradient, where there is no entity; also if what stands there is no number."""
    return torch.where(present[..., None], vectors, 0.0)


def first_tokens(
    starts: Bool[Tensor, "batch n"], vectors: Float[Tensor, "found dim"]
) -> Float[Tensor, "batch n dim"]:
    """Put the vector of each entity at the first token of its mention, zeros elsewhere.

    Args:
        starts: Where mentions start.
        vectors: Vectors of their entities, row after row and from left to right.

    Returns:
        A vector for each token.

    Raises:
        ValueError: If there are not as many vectors as starts, or these are not boolean.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> first_tokens(torch.tensor([[False, True]]), torch.tensor([[3.0]]))
        tensor([[[0.],
                 [3.]]])
    """
    check_shape("starts", starts, (None, None))
    _check_mask("starts", starts)
    check_shape("vectors", vectors, (None, None))
    if can_read(starts) and int(starts.sum()) != len(vectors):
        raise ValueError(
            f"{int(starts.sum())} mentions start, but there are {len(vectors)} vectors"
        )
    places = vectors.new_zeros(*starts.shape, vectors.shape[1])
    return places.masked_scatter(starts[..., None].expand_as(places), vectors)


class ERNIEFusion(nn.Module):
    r"""ERNIE's fusion of each word with the entity whose mention it starts.

    .. math::

        h_j=\phi(w_jW_t+e_kW_e+b),\qquad w'_j=\phi(h_jW'_t+b'_t),\qquad e'_k=\phi(h_jW'_e+b'_e)

    A word without an entity gives :math:`h_j=\phi(w_jW_t+b)`: a feed-forward layer.

    Args:
        dim: Width of the words.
        entity_dim: Width of the entities.
        hidden: Width of :math:`h`.

    References:
        Zhang et al. 2019, arXiv:1905.07129, sec. 3.3; :math:`\phi` is GELU there as here.

    Book: :doc:`/book/knowledge/entity_linking`
    """

    def __init__(self, dim: int, entity_dim: int, hidden: int) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("entity_dim", entity_dim), ("hidden", hidden)):
            check_count(name, size)
        self.words_in = nn.Linear(dim, hidden)
        self.entities_in = nn.Linear(entity_dim, hidden, bias=False)
        self.words_out = nn.Linear(hidden, dim)
        self.entities_out = nn.Linear(hidden, entity_dim)

    def forward(
        self,
        words: Float[Tensor, "batch n dim"],
        entities: Float[Tensor, "batch n entity_dim"],
        present: Bool[Tensor, "batch n"],
    ) -> tuple[Float[Tensor, "batch n dim"], Float[Tensor, "batch n entity_dim"]]:
        """Fuse.

        Args:
            words: Vectors of the words.
            entities: Vector of the entity at the first token of its mention.
            present: Where there is one; elsewhere its vector is not looked at.

        Returns:
            New vectors of words, and of entities, which are 0 where there is none.

        Raises:
            ValueError: If shapes do not fit, or ``present`` is not boolean.
        """
        check_shape("words", words, (None, None, self.words_in.in_features))
        check_shape("present", present, tuple(words.shape[:2]))
        check_shape("entities", entities, (*present.shape, self.entities_in.in_features))
        _check_mask("present", present)
        mixed = F.gelu(self.words_in(words) + self.entities_in(_dropped(entities, present)))
        return F.gelu(self.words_out(mixed)), _dropped(F.gelu(self.entities_out(mixed)), present)


class GatedFusion(nn.Module):
    r"""A gate between each word and its entity: :math:`w'=g\odot w+(1-g)\odot eW`.

    The gate is :math:`g=\sigma(wU+eWV+b)`, one number a component. A word without an entity stays
    as it is.

    Args:
        dim: Width of the words.
        entity_dim: Width of the entities.
        bias: Start of the bias :math:`b`. At 2 the gate starts near 0.88: mostly the word.

    Book: :doc:`/book/knowledge/entity_linking`
    """

    def __init__(self, dim: int, entity_dim: int, *, bias: float = 2.0) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("entity_dim", entity_dim)
        self.project = nn.Linear(entity_dim, dim, bias=False)
        self.from_words = nn.Linear(dim, dim)
        self.from_entities = nn.Linear(dim, dim, bias=False)
        nn.init.constant_(self.from_words.bias, bias)

    def forward(
        self,
        words: Float[Tensor, "batch n dim"],
        entities: Float[Tensor, "batch n entity_dim"],
        present: Bool[Tensor, "batch n"],
    ) -> Float[Tensor, "batch n dim"]:
        """Fuse.

        Args:
            words: Vectors of the words.
            entities: Vectors of their entities.
            present: Where there is one; elsewhere its vector is not looked at.

        Returns:
            New vectors of words.

        Raises:
            ValueError: If shapes do not fit, or ``present`` is not boolean.
        """
        check_shape("words", words, (None, None, self.from_words.in_features))
        check_shape("present", present, tuple(words.shape[:2]))
        check_shape("entities", entities, (*present.shape, self.project.in_features))
        _check_mask("present", present)
        brought = self.project(_dropped(entities, present))
        gate = torch.sigmoid(self.from_words(words) + self.from_entities(brought))
        return torch.where(present[..., None], gate * words + (1 - gate) * brought, words)


def span_vectors(
    words: Float[Tensor, "batch n dim"],
    spans: Bool[Tensor, "batch m n"],
    query: Float[Tensor, " dim"],
) -> Float[Tensor, "batch m dim"]:
    r"""Pool the words of each span with weights :math:`\mathrm{softmax}(w_j\cdot q)`.

    Args:
        words: Vectors of the words.
        spans: Which words belong to which span; a span without words gives zeros.
        query: The vector :math:`q` that says what counts.

    Returns:
        One vector a span.

    Raises:
        ValueError: If shapes do not fit, or ``spans`` is not boolean.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> words = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> spans = torch.tensor([[[True, True, False]]])
        >>> span_vectors(words, spans, torch.zeros(1))
        tensor([[[2.]]])
    """
    check_shape("spans", spans, (words.shape[0], None, words.shape[1]))
    check_shape("query", query, (words.shape[2],))
    _check_mask("spans", spans)
    none = ~spans.any(-1, keepdim=True)
    logits = (words @ query)[:, None].expand_as(spans).masked_fill(~spans & ~none, float("-inf"))
    weights = logits.softmax(-1).masked_fill(none, 0.0)
    return weights @ words


class KnowBertLayer(nn.Module):
    r"""KnowBert's layer: link the spans of a sentence, and let all words attend to the entities.

    With words :math:`H` projected to the entities' width, :math:`P=HW_1+b_1`, and vectors
    :math:`s_m` pooled from the spans of :math:`P`, and a small network :math:`f`:

    .. math::

        \tilde e_m=\sum_k\mathrm{softmax}_k\big(f(\log p_{mk},\,s_m\cdot e_{mk})\big)\,e_{mk},
        \qquad H'=H+\mathrm{Attention}(P,\;s+\tilde e,\;s+\tilde e)\,W_2

    A sentence without a span stays as it is.

    Args:
        dim: Width of the words.
        entity_dim: Width of the entities.
        hidden: Width of the network that joins prior and similarity.

    References:
        Peters et al. 2019, arXiv:1909.04164, sec. 3.3. There the attention has several heads, the
        spans first attend to each other, a feed-forward layer follows, and candidates below a
        threshold are left out; here it is one head, and the softmax has a null candidate with a
        learned score and the vector 0.

    Book: :doc:`/book/knowledge/entity_linking`
    """

    def __init__(self, dim: int, entity_dim: int, *, hidden: int = 100) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("entity_dim", entity_dim), ("hidden", hidden)):
            check_count(name, size)
        self.down = nn.Linear(dim, entity_dim)
        self.query = nn.Parameter(torch.zeros(entity_dim))
        self.link = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.null = nn.Parameter(torch.zeros(()))
        self.up = nn.Linear(entity_dim, dim, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.linalg.pinv(self.down.weight))

    def link_probs(
        self,
        words: Float[Tensor, "batch n dim"],
        spans: Bool[Tensor, "batch m n"],
        candidates: Float[Tensor, "batch m k entity_dim"],
        log_prior: Float[Tensor, "batch m k"],
    ) -> Float[Tensor, "batch m choices"]:
        """Probabilities of the candidates of each span; the last choice is none of them.

        Args:
            words: Vectors of the words.
            spans: Which words belong to which span.
            candidates: Vectors of the candidates of each span.
            log_prior: Their log-priors; minus infinity where there is none.

        Returns:
            k + 1 probabilities a span.
        """
        return self._linked(words, spans, candidates, log_prior)[2]

    def _linked(
        self, words: Tensor, spans: Tensor, candidates: Tensor, log_prior: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_shape("spans", spans, (words.shape[0], None, words.shape[1]))
        check_shape("words", words, (None, None, self.down.in_features))
        check_shape("candidates", candidates, (*spans.shape[:2], None, self.down.out_features))
        check_shape("log_prior", log_prior, tuple(candidates.shape[:3]))
        low = self.down(words)
        pooled = span_vectors(low, spans, self.query)
        exists = log_prior != float("-inf")  # a NaN is a fault, and no missing candidate
        vectors = _dropped(candidates, exists)
        fit = torch.einsum("bmd,bmkd->bmk", pooled, vectors)
        pairs = torch.stack([log_prior.masked_fill(~exists, 0.0), fit], -1)
        scores = self.link(pairs)[..., 0].masked_fill(~exists, float("-inf"))
        null = self.null.expand(*scores.shape[:2], 1)
        probs = torch.cat([scores, null], -1).softmax(-1)
        meant = torch.einsum("bmk,bmkd->bmd", probs[..., :-1], vectors)
        return low, pooled + meant, probs

    def forward(
        self,
        words: Float[Tensor, "batch n dim"],
        spans: Bool[Tensor, "batch m n"],
        candidates: Float[Tensor, "batch m k entity_dim"],
        log_prior: Float[Tensor, "batch m k"],
    ) -> Float[Tensor, "batch n dim"]:
        """Give the words what is known of the entities that the sentence names.

        Args:
            words: Vectors of the words.
            spans: Which words belong to which span; a span without words is padding.
            candidates: Vectors of the candidates of each span.
            log_prior: Their log-priors; minus infinity where there is none.

        Returns:
            New vectors of words.

        Raises:
            ValueError: If shapes do not fit.
        """
        low, knowledge, _ = self._linked(words, spans, candidates, log_prior)
        there = spans.any(-1)
        scores = low @ knowledge.transpose(1, 2) / low.shape[-1] ** 0.5
        none = ~there.any(-1)[:, None, None]
        scores = scores.masked_fill(~there[:, None] & ~none, float("-inf"))
        weights = scores.softmax(-1).masked_fill(none, 0.0)
        brought: Tensor = self.up(weights @ knowledge)
        return words + brought
