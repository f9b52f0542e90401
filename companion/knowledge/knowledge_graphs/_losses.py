r"""Wrong facts to learn from, and the losses that compare them with true ones."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, check_shape, rand, randint

__all__ = ["corrupt_facts", "margin_loss", "self_adversarial_loss"]


def corrupt_facts(
    facts: Int[Tensor, "batch 3"], *, entities: int, count: int, generator: torch.Generator
) -> Int[Tensor, "batch count 3"]:
    """Replace head or tail of each fact, whichever a coin says, by an entity drawn uniformly.

    The drawn entity differs from the one that it replaces. The wrong fact may still be true: on
    dense graphs that is frequent, and it is the price of not looking it up.

    Args:
        facts: True facts, one (head, relation, tail) a row.
        entities: Number of entities, 2 or more.
        count: How many wrong facts for each true one.
        generator: Source of the draws.

    Returns:
        Wrong facts, on the device of the true ones.

    Raises:
        ValueError: If the facts are not triples, or a number is too small.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> wrong = corrupt_facts(torch.tensor([[0, 0, 1]]), entities=3, count=4, generator=draws)
        >>> (wrong != torch.tensor([0, 0, 1])).sum(-1)
        tensor([[1, 1, 1, 1]])
    """
    check_shape("facts", facts, (None, 3))
    check_count("entities", entities, low=2)
    check_count("count", count)
    shape = (len(facts), count)
    wrong = facts[:, None].expand(*shape, 3)
    # Adding 1, ..., entities - 1 modulo their number reaches every other entity equally often.
    shift = randint(1, entities, shape, generator=generator, device=facts.device)
    side = rand(*shape, generator=generator, device=facts.device) < 0.5
    head = torch.where(side, (wrong[..., 0] + shift) % entities, wrong[..., 0])
    tail = torch.where(side, wrong[..., 2], (wrong[..., 2] + shift) % entities)
    return torch.stack([head, wrong[..., 1], tail], -1)


def margin_loss(
    true: Float[Tensor, " batch"], wrong: Float[Tensor, "batch count"], *, margin: float
) -> Float[Tensor, ""]:
    r"""Ask each true fact to score higher than its wrong ones by a margin.

    .. math:: L = \frac1{Bn} \sum_{b,j} \big[\gamma + f^-_{bj} - f^+_b\big]_+

    Args:
        true: Scores of true facts.
        wrong: Scores of the wrong facts that belong to each.
        margin: :math:`\gamma > 0`, in the unit of the scores.

    Returns:
        The mean over all pairs, 0 or above.

    Raises:
        ValueError: If shapes do not fit, or the margin is not above 0.

    References:
        Bordes et al. 2013; it sums where this takes the mean.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> margin_loss(torch.tensor([-1.0]), torch.tensor([[-1.5, -4.0]]), margin=1.0)
        tensor(0.2500)
    """
    _check(true, wrong, margin)
    return (margin + wrong - true[:, None]).clamp_min(0).mean()


def self_adversarial_loss(
    true: Float[Tensor, " batch"],
    wrong: Float[Tensor, "batch count"],
    *,
    margin: float,
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Push down the wrong facts that the model finds likeliest.

    .. math:: L = \frac1{2B} \sum_b \Big( -\log\sigma(\gamma + f^+_b)
       - \sum_j w_{bj} \log\sigma(-f^-_{bj} - \gamma) \Big),
       \qquad w_{bj} = \frac{e^{\alpha f^-_{bj}}}{\sum_k e^{\alpha f^-_{bk}}}

    The weights are constants: no gradient goes through them.

    Args:
        true: Scores of true facts.
        wrong: Scores of the wrong facts that belong to each.
        margin: :math:`\gamma > 0`, in the unit of the scores.
        temperature: :math:`\alpha \ge 0`, as the authors call it: it multiplies the scores, so 0
            weighs all alike, and a large one looks at the worst alone.

    Returns:
        The mean over facts of half the sum of both terms.

    Raises:
        ValueError: If shapes do not fit, or a number is out of its domain.

    References:
        Sun et al. 2019, arXiv:1902.10197; the half is that of the authors' code.

    Book: :doc:`/book/knowledge/knowledge_graphs`

    Example:
        >>> f = torch.tensor([0.0])
        >>> self_adversarial_loss(f, f[None], margin=0.1, temperature=1.0)
        tensor(0.6944)
    """
    _check(true, wrong, margin)
    check_in_range("temperature", temperature, low=0.0, open_high=True)
    weights = (temperature * wrong.detach()).softmax(-1)
    far = -(weights * F.logsigmoid(-wrong - margin)).sum(-1)
    return (far - F.logsigmoid(margin + true)).mean() / 2


def _check(true: Tensor, wrong: Tensor, margin: float) -> None:
    check_floating("true", true)
    check_shape("true", true, (None,))
    check_shape("wrong", wrong, (len(true), None))
    if true.numel() == 0 or wrong.shape[1] == 0:
        raise ValueError("a loss needs a true fact and a wrong one, got none")
    check_in_range("margin", margin, low=0.0, open_low=True, open_high=True)
