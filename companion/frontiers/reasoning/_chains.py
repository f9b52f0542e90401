r"""Chains of steps: what they compute as hidden variables, and how their errors pile up."""

from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from companion.core import can_read, check_count, check_floating, check_same_shape, wide

__all__ = ["Marginal", "chain_success", "expected_steps", "marginalize"]


class Marginal(NamedTuple):
    r"""An answer after all chains that lead to it.

    Attributes:
        log_prob: :math:`\log p(y \mid x)`.
        posterior: :math:`p(r \mid x, y)` of each chain.
    """

    log_prob: Tensor
    posterior: Tensor


def marginalize(
    log_chains: Float[Tensor, "*batch chains"], log_answer: Float[Tensor, "*batch chains"]
) -> Marginal:
    r"""Sum an answer's probability over chains of thought, and say which chains speak for it.

    .. math:: p(y \mid x) = \sum_r p(r \mid x)\, p(y \mid x, r)

    Args:
        log_chains: :math:`\log p(r \mid x)` of chains; all there are, or distinct ones.
        log_answer: :math:`\log p(y \mid x, r)` after each.

    Returns:
        Its log-probability in nats, and the posterior, which is NaN where no chain leads to it.

    Raises:
        ValueError: If the shapes differ, or there is no chain.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> import torch
        >>> made = marginalize(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log())
        >>> made.posterior
        tensor([0.9000, 0.1000])
    """
    check_floating("log_chains", log_chains)
    check_same_shape("log_chains", log_chains, "log_answer", log_answer)
    check_count("chains", log_chains.shape[-1])
    joint = wide(log_chains) + wide(log_answer)
    total = joint.logsumexp(-1)
    return Marginal(total, joint.softmax(-1))


def chain_success(
    error: Float[Tensor, "*batch"], *, steps: int, recovery: float = 0.0
) -> Float[Tensor, "*batch"]:
    r"""Compute how likely a chain ends right where steps fail independently.

    .. math:: s_L = (1 - \epsilon)\, s_{L-1} + \rho\,(1 - s_{L-1}), \qquad s_0 = 1

    Without recovery it is :math:`(1 - \epsilon)^L`. With recovery it tends to
    :math:`\rho/(\epsilon + \rho)`.

    Args:
        error: :math:`\epsilon`, how often a step fails that follows right ones.
        steps: :math:`L`.
        recovery: :math:`\rho`, how often a step leads back from wrong to right.

    Returns:
        The probability.

    Raises:
        ValueError: If a probability lies outside 0 to 1, or steps are below 0.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> import torch
        >>> round(float(chain_success(torch.tensor(0.01), steps=100)), 3)
        0.366
    """
    check_floating("error", error)
    check_count("steps", steps, low=0)
    if not 0 <= recovery <= 1 or _outside(error):
        raise ValueError("error and recovery must be probabilities, from 0 to 1")
    kept = wide(error).dtype
    epsilon = error.double()  # in float32 1 - 1e-9 is 1, and a million steps never fail
    if recovery == 0:
        return ((1 - epsilon) ** steps).to(kept)
    leaving = epsilon + recovery
    factor = (1 - leaving) ** steps
    return (1 - epsilon * (1 - factor) / leaving).to(kept)


def expected_steps(
    error: Float[Tensor, "*batch"], *, steps: int, feedback: Literal["outcome", "process"]
) -> Float[Tensor, "*batch"]:
    r"""Compute how many steps are written, on average, until a whole chain is right.

    .. math:: \frac{L}{(1 - \epsilon)^L} \text{ by outcome}, \qquad
        \frac{L}{1 - \epsilon} \text{ by process}

    Args:
        error: :math:`\epsilon`, how often a step fails; steps are independent.
        steps: :math:`L`.
        feedback: ``"outcome"``: a perfect verifier sees finished chains, and a wrong one is
            written anew. ``"process"``: it sees each step, and only this one is.

    Returns:
        The mean number of steps.

    Raises:
        ValueError: If an error does not lie in [0, 1), or steps are below 1.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> import torch
        >>> tenth = torch.tensor(0.1)
        >>> [round(float(expected_steps(tenth, steps=20, feedback=f)), 1)
        ...  for f in ("outcome", "process")]
        [164.5, 22.2]
    """
    check_floating("error", error)
    check_count("steps", steps)
    if feedback not in ("outcome", "process"):
        raise ValueError(f"feedback must be 'outcome' or 'process', got {feedback!r}")
    if _outside(error) or (can_read(error) and bool((error == 1).any())):
        raise ValueError("error must lie in [0, 1): a step that always fails never ends")
    right = (1 - error.double()) ** (steps if feedback == "outcome" else 1)
    return (steps / right).to(wide(error).dtype)


def _outside(value: Tensor) -> bool:
    return can_read(value) and not bool(((value >= 0) & (value <= 1)).all())
