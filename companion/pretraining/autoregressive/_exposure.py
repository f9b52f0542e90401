r"""Exposure bias: the cost of errors that lead to prefixes never seen in training."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from companion.core import check_count, check_in_range, check_shape, rand
from companion.foundations.cross_entropy import chunked_cross_entropy, linear_cross_entropy
from companion.pretraining.autoregressive._draw import draw
from companion.transformer.block import Decoder

__all__ = ["expected_mistakes", "scheduled_sampling"]


def expected_mistakes(steps: int, *, error: float, recovery: float = 0.0) -> float:
    r"""Count the steps that an imitator is expected to spend off its path.

    On the path it leaves it with probability :math:`\epsilon` a step; off the path it comes back
    with probability :math:`\rho` a step. So the probability :math:`q_t` to be off it after step
    :math:`t` is

    .. math:: q_t = (1 - \rho)\, q_{t-1} + \epsilon\, (1 - q_{t-1}), \qquad q_0 = 0

    and with :math:`\lambda = 1 - \epsilon - \rho` the sum is

    .. math:: \sum_{t=1}^T q_t = \frac{\epsilon}{\epsilon + \rho}
        \Big(T - \lambda \, \frac{1 - \lambda^T}{1 - \lambda}\Big)

    Without recovery this is at most :math:`\epsilon T (T + 1) / 2`, with it at most
    :math:`\epsilon T / (\epsilon + \rho)` where :math:`\lambda \ge 0`.

    Args:
        steps: Length :math:`T`.
        error: :math:`\epsilon` in [0, 1].
        recovery: :math:`\rho` in [0, 1].

    Returns:
        Expected number of steps off the path, from 0 to ``steps``.

    Raises:
        ValueError: If a number is out of its domain.

    Numerics:
        The sum :math:`\epsilon \sum_{j<T} (T - j) \lambda^j`, which is the same number, term by
        term: the closed form loses its digits where both rates are small.

    References:
        The quadratic growth is that of Ross and Bagnell, AISTATS 2010, theorem 2.1.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> round(expected_mistakes(100, error=0.01), 1)
        37.2
        >>> round(expected_mistakes(100, error=0.01, recovery=0.5), 1)
        1.9
    """
    check_count("steps", steps, low=0)
    check_in_range("error", error, low=0.0, high=1.0)
    check_in_range("recovery", recovery, low=0.0, high=1.0)
    keep = 1.0 - error - recovery
    # The closed form, whose difference cancels for small rates, as the sum that it is of.
    return error * sum((steps - j) * keep**j for j in range(steps))


def scheduled_sampling(
    model: Decoder,
    ids: Integer[Tensor, "batch n"],
    *,
    ratio: float,
    generator: torch.Generator,
    temperature: float = 1.0,
    chunked: bool = True,
) -> Float[Tensor, ""]:
    r"""Return the loss on prefixes in which some tokens are the model's own.

    A first pass reads the true tokens and draws a next token at every position. Each true token
    but the first is then replaced, with the given probability, by the one drawn for its place,
    and a second pass is trained to predict the true tokens from this mixture.

    Args:
        model: The language model.
        ids: True tokens, at least two a row.
        ratio: Probability in [0, 1] that a token is the model's own; 0 is teacher forcing.
        generator: The source of randomness.
        temperature: Of the draws.
        chunked: As in :func:`next_token_loss`.

    Returns:
        The mean loss in nats. No gradient passes through the draws.

    Raises:
        ValueError: If the ratio is not a probability, or ``ids`` do not fit.

    Numerics:
        Two passes, the first without gradients: about four thirds of the cost of teacher forcing.

    References:
        Bengio et al. 2015, arXiv:1506.03099, draw token by token; the two passes are those of
        Mihaylova and Martins 2019, arXiv:1906.07651, and condition each draw on true tokens.
        F. Huszar 2015, arXiv:1511.05101, shows that the optimum is not the true distribution.

    Book: :doc:`/book/pretraining/autoregressive`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> g = torch.Generator().manual_seed(0)
        >>> ids = torch.tensor([[1, 2, 3, 4, 5]])
        >>> scheduled_sampling(Decoder(config), ids, ratio=0.5, generator=g).shape
        torch.Size([])
    """
    check_in_range("ratio", ratio, low=0.0, high=1.0)
    check_shape("ids", ids, (None, None))
    check_count("tokens of each sequence", ids.shape[1], low=2)
    read = ids[:, :-1]
    if ratio > 0 and read.shape[1] > 1:
        with torch.no_grad():
            logits = model(read[:, :-1])
            drawn = draw(logits, generator=generator, temperature=temperature).to(ids.dtype)
        own = rand(*drawn.shape, generator=generator, device=ids.device) < ratio
        read = torch.cat([read[:, :1], torch.where(own, drawn, read[:, 1:])], dim=1)
    compute = chunked_cross_entropy if chunked else linear_cross_entropy
    return compute(model.hidden(read), model.head.weight.T, ids[:, 1:])
