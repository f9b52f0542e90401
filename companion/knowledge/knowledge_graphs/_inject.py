r"""Ways to bring facts into a language model: rows to attend to, and texts to condition on."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import can_read, check_floating, check_same_shape, check_shape
from companion.transformer.attention import attention, attention_weights

__all__ = ["attend_with_facts", "fact_share", "retrieval_marginal", "retrieval_posterior"]


def attend_with_facts(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*batch m key"],
    V: Float[Tensor, "*batch m value"],
    fact_keys: Float[Tensor, "*batch facts key"],
    fact_values: Float[Tensor, "*batch facts value"],
    *,
    mask: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, "*batch n value"]:
    r"""Attention over tokens and facts: :math:`\mathrm{Attn}(Q, [K; K_G], [V; V_G])`.

    Every token may read every fact, whatever the mask of the text says. With
    :math:`g = \mathrm{fact\_share}` the output is
    :math:`(1 - g)\,\mathrm{Attn}(Q, K, V) + g\,\mathrm{Attn}(Q, K_G, V_G)`.

    Args:
        Q: Queries of tokens.
        K: Keys of tokens.
        V: Values of tokens.
        fact_keys: Keys :math:`K_G` of facts, such as vectors of a graph network, mapped.
        fact_values: Values :math:`V_G`. With no rows at all the output is that of the text alone.
        mask: Which token may read which token, True where it may.

    Returns:
        Outputs, a row for each query.

    Raises:
        ValueError: If shapes do not fit.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> q = k = torch.zeros(1, 2)
        >>> attend_with_facts(q, k, torch.tensor([[1.0]]), k, torch.tensor([[3.0]]))
        tensor([[2.]])
    """
    keys, both = _join(Q, K, fact_keys, mask)
    check_shape("fact_values", fact_values, (*fact_keys.shape[:-1], V.shape[-1]))
    return attention(Q, keys, torch.cat([V, fact_values], -2), mask=both, backend="dense")


def fact_share(
    Q: Float[Tensor, "*batch n key"],
    K: Float[Tensor, "*batch m key"],
    fact_keys: Float[Tensor, "*batch facts key"],
    *,
    mask: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, "*batch n"]:
    r"""The share of its attention that each token gives to facts.

    .. math:: g = \frac{\sum_{f} e^{q \cdot k_f / \sqrt{d}}}{\sum_{f} e^{q \cdot k_f / \sqrt{d}}
       + \sum_{j} e^{q \cdot k_j / \sqrt{d}}}

    Args:
        Q: Queries of tokens.
        K: Keys of tokens.
        fact_keys: Keys of facts.
        mask: Which token may read which token, True where it may.

    Returns:
        Numbers from 0 to 1: 0 without facts, 1 where the mask leaves no token to read.

    Raises:
        ValueError: If shapes do not fit.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> fact_share(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, 2))
        tensor([0.2500])
    """
    keys, both = _join(Q, K, fact_keys, mask)
    return attention_weights(Q, keys, mask=both)[..., K.shape[-2] :].sum(-1)


def _join(
    Q: Tensor, K: Tensor, fact_keys: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    check_floating("fact_keys", fact_keys)
    check_shape("fact_keys", fact_keys, (*K.shape[:-2], None, K.shape[-1]))
    keys = torch.cat([K, fact_keys], -2)
    if mask is None:
        return keys, None
    n, m = Q.shape[-2], K.shape[-2]
    check_shape("mask", mask, (n, m))
    facts = torch.ones(n, fact_keys.shape[-2], dtype=torch.bool, device=Q.device)
    return keys, torch.cat([mask, facts], -1)


def retrieval_marginal(
    retrieved: Float[Tensor, "*batch texts"], answers: Float[Tensor, "*batch texts candidates"]
) -> Float[Tensor, "*batch candidates"]:
    r"""Log-probabilities of answers when one of several texts is read, and which one is chance.

    .. math:: \log p(y \mid x) = \log \sum_z p(z \mid x)\, p(y \mid x, z)

    It is a mixture of answers, not an answer to a mixture of texts.

    Args:
        retrieved: Log-probabilities :math:`\log p(z \mid x)` of the texts, normalized.
        answers: Log-probabilities :math:`\log p(y \mid x, z)` of candidates after each text.

    Returns:
        Log-probabilities of the candidates in nats.

    Raises:
        ValueError: If shapes do not fit, or the texts' probabilities do not sum to 1.

    References:
        Lewis et al. 2020, arXiv:2005.11401 (RAG-Sequence); Guu et al. 2020, arXiv:2002.08909.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> z = torch.tensor([0.25, 0.75]).log()
        >>> y = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
        >>> retrieval_marginal(z, y).exp()
        tensor([0.5000, 0.5000])
    """
    _check_texts(retrieved, answers)
    return (retrieved[..., None] + answers).logsumexp(-2)


def retrieval_posterior(
    retrieved: Float[Tensor, "*batch texts"], answer: Float[Tensor, "*batch texts"]
) -> Float[Tensor, "*batch texts"]:
    r"""Which text the answer speaks for.

    .. math:: p(z \mid x, y) = \frac{p(z \mid x)\, p(y \mid x, z)}{p(y \mid x)}

    These are the weights with which the texts share the gradient of :math:`\log p(y \mid x)`.

    Args:
        retrieved: Log-probabilities :math:`\log p(z \mid x)` of the texts, normalized.
        answer: Log-probabilities of the answer after each text.

    Returns:
        Probabilities of the texts; NaN where the answer is impossible after each of them.

    Raises:
        ValueError: If shapes do not fit, or the texts' probabilities do not sum to 1.

    References:
        Guu et al. 2020, arXiv:2002.08909.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> retrieval_posterior(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log())
        tensor([0.9000, 0.1000])
    """
    check_same_shape("answer", answer, "retrieved", retrieved)
    _check_texts(retrieved, answer[..., None])
    return (retrieved + answer).softmax(-1)


def _check_texts(retrieved: Tensor, answers: Tensor) -> None:
    check_floating("retrieved", retrieved)
    check_shape("answers", answers, (*retrieved.shape, None))
    if can_read(retrieved):
        total = float(retrieved.detach().double().logsumexp(-1).abs().max())
        # Rounding each logarithm in low precision moves the sum by several units.
        if not total < max(1e-3, 8 * torch.finfo(retrieved.dtype).eps):
            raise ValueError(
                f"retrieved must hold log-probabilities that sum to 1, but log of the sum is "
                f"{total:.3g}: apply log_softmax to scores first"
            )
