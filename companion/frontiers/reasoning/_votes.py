r"""Many answers to one question: votes, counting what some of them would have done, verifiers."""

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import (
    can_read,
    check_count,
    check_floating,
    check_same_shape,
    check_shape,
    wide,
)

__all__ = [
    "best_of_n_success",
    "consensus_at_k",
    "majority_accuracy",
    "pass_at_k",
    "plurality_accuracy",
    "plurality_credit",
    "verifier_ceiling",
    "verifier_rates",
    "vote_shares",
]


def vote_shares(
    answers: Integer[Tensor, "questions n"], *, none: int | None = None
) -> Float[Tensor, "questions n"]:
    r"""Say of each answer how far it wins the vote on its question.

    Args:
        answers: A number for each answer; equal ones are the same answer.
        none: The number that stands for *no answer*. It gets no vote and cannot win.

    Returns:
        1 for each answer of the largest class, 1/m where m classes share the most votes, 0
        elsewhere. float64.

    Raises:
        ValueError: If a question has no answer.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> vote_shares(torch.tensor([[7, 7, 8], [3, 4, -1]]), none=-1)
        tensor([[1.0000, 1.0000, 0.0000],
                [0.5000, 0.5000, 0.0000]], dtype=torch.float64)
    """
    check_shape("answers", answers, (None, None))
    check_count("answers to a question", answers.shape[1])
    same = answers[:, :, None] == answers[:, None, :]
    if none is not None:
        same = same & (answers != none)[:, :, None]
    votes = same.sum(-1)
    most = votes.amax(-1, keepdim=True)
    wins = (votes == most) & (most > 0)
    # Each class at the top is counted once a member: as often as it has votes.
    classes = wins.sum(-1, keepdim=True) / most.clamp_min(1)
    return wins.double() / classes.clamp_min(1)


def plurality_credit(
    answers: Integer[Tensor, "questions n"],
    gold: Integer[Tensor, " questions"],
    *,
    none: int | None = None,
) -> Float[Tensor, " questions"]:
    r"""Vote on each question, and say how right the winner is.

    Args:
        answers: A number for each answer; equal ones are the same answer.
        gold: The number of the right one.
        none: The number that stands for *no answer*. It gets no vote and cannot win; it is no
            right answer either.

    Returns:
        1 where the right answer alone has the most votes, 1/m where it shares them with m - 1
        others (the mean over fair draws), 0 elsewhere, and where nobody voted. float64.

    Raises:
        ValueError: If the shapes do not fit, or gold is *no answer*.

    References:
        Wang et al. 2023, arXiv:2203.11171.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> answers = torch.tensor([[7, 7, 8], [3, 4, -1], [-1, -1, 5]])
        >>> plurality_credit(answers, torch.tensor([7, 4, 5]), none=-1)
        tensor([1.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    check_shape("answers", answers, (None, None))
    check_shape("gold", gold, (answers.shape[0],))
    if none is not None and can_read(gold) and bool((gold == none).any()):
        raise ValueError(f"gold is {none}, no answer: leave such questions out")
    return (vote_shares(answers, none=none) * (answers == gold[:, None])).amax(-1)


def majority_accuracy(p: Float[Tensor, "*batch"], *, n: int) -> Float[Tensor, "*batch"]:
    r"""Compute how often the majority of n independent answers is right, of two possible ones.

    .. math:: \sum_{k > n/2} \binom{n}{k} p^k (1 - p)^{n - k}
        + \tfrac12 \binom{n}{n/2} (p(1 - p))^{n/2} \text{ for even } n

    Args:
        p: How often one answer is right.
        n: How many vote. A tie is decided by a fair coin.

    Returns:
        The probability, float64.

    Raises:
        ValueError: If n is below 1, or a probability lies outside 0 to 1.

    References:
        Condorcet 1785.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> [round(float(majority_accuracy(torch.tensor(0.6), n=n)), 5) for n in (2, 3, 5)]
        [0.6, 0.648, 0.68256]
    """
    check_count("n", n)
    _check_probability("p", p)
    right = p.double()[..., None]
    k = torch.arange(n + 1, device=p.device, dtype=torch.float64)
    top = torch.tensor(float(n), dtype=torch.float64, device=p.device)
    choose = torch.lgamma(top + 1) - torch.lgamma(k + 1) - torch.lgamma(top - k + 1)
    log_law = choose + torch.xlogy(k, right) + torch.xlogy(top - k, 1 - right)
    credit = (k > n / 2).double() + 0.5 * (k == n / 2).double()
    return (log_law.exp() * credit).sum(-1)


def plurality_accuracy(
    probabilities: Float[Tensor, " answers"], *, n: int, right: int = 0
) -> float:
    r"""Compute how often the most frequent of n independent answers is the right one, exactly.

    Args:
        probabilities: Of each answer; they sum to 1.
        n: How many are drawn.
        right: Which answer is right.

    Returns:
        The probability. Ties are shared evenly. For :math:`n \to \infty` it goes to 1 if the right
        answer is the most probable one, to 0 if another is.

    Raises:
        ValueError: If the probabilities do not sum to 1, or a number is out of range (n up to
            150, for the factorials).

    Numerics:
        The votes of the others are summed one answer after the other, for each number of votes
        that the right one may get: about :math:`m^2 n^3` operations for m answers.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> law = torch.tensor([0.4, 0.3, 0.3])
        >>> [round(plurality_accuracy(law, n=n), 4) for n in (1, 3, 5)]
        [0.4, 0.424, 0.447]
    """
    check_shape("probabilities", probabilities, (None,))
    _check_probability("probabilities", probabilities)
    check_count("n", n, high=150)
    check_count("right", right, low=0, high=len(probabilities) - 1)
    law = probabilities.double().tolist()
    if abs(sum(law) - 1) > 1e-5:
        raise ValueError(f"probabilities must sum to 1, got {sum(law):.6f}")
    # p^m / m! for each answer: the product of such terms, times n!, is the multinomial law.
    terms = [[q**m / math.factorial(m) for m in range(n + 1)] for q in law]
    return math.factorial(n) * _wins(terms, right, n)


def consensus_at_k(counts: Sequence[int], *, k: int, right: int = 0, none: int = 0) -> float:
    r"""Estimate how right the vote of k answers is from n: the mean over all subsets of k.

    Args:
        counts: How often each answer was given.
        k: How many of them vote.
        right: Which answer is right; it may have the count 0.
        none: How many more gave no answer. They may be drawn, and have no vote.

    Returns:
        The mean of the credit, as in :func:`plurality_credit`, over the :math:`\binom nk` subsets:
        an unbiased estimate for k new answers.

    Raises:
        ValueError: If k exceeds the answers there are, or a count is below 0.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> consensus_at_k([3, 2], k=3)
        0.7
    """
    check_count("k", k)
    for name, count in [("none", none), *(("a count", count) for count in counts)]:
        check_count(name, count, low=0)
    check_count("right", right, low=0, high=len(counts) - 1)
    total = sum(counts) + none
    if k > total:
        raise ValueError(f"k = {k} of {total} answers cannot be drawn: sample more, or lower k")
    terms = [[math.comb(count, m) for m in range(k + 1)] for count in counts]
    found = Fraction(0)
    for silent in range(min(none, k) + 1):
        found += math.comb(none, silent) * Fraction(_wins(terms, right, k - silent))
    return float(found / math.comb(total, k))


def _wins(terms: Sequence[Sequence[float]], right: int, n: int) -> "float | Fraction":
    """Sum products of terms over all votes of n, times the credit of the right answer."""
    exact = all(isinstance(term, int) for row in terms for term in row)
    others = [row for j, row in enumerate(terms) if j != right]
    found: float | Fraction = 0
    for mine in range(1, n + 1):
        if not terms[right][mine]:
            continue
        # sums[tied][votes]: of the answers so far, how many tie, and how many votes they have
        sums: dict[tuple[int, int], float] = {(0, 0): 1}
        for row in others:
            fresh: dict[tuple[int, int], float] = {}
            for (tied, votes), weight in sums.items():
                for more in range(min(mine, n - mine - votes) + 1):
                    if row[more]:
                        key = (tied + (more == mine), votes + more)
                        fresh[key] = fresh.get(key, 0) + weight * row[more]
            sums = fresh
        for (tied, votes), weight in sums.items():
            if votes == n - mine:
                share = Fraction(1, tied + 1) if exact else 1 / (tied + 1)
                found = found + terms[right][mine] * weight * share
    return found


def pass_at_k(
    n: Integer[Tensor, "*batch"], c: Integer[Tensor, "*batch"], *, k: int
) -> Float[Tensor, "*batch"]:
    r"""Estimate how often one of k answers is right, from n answers of which c are, unbiased.

    .. math:: \widehat{\mathrm{pass@}k} = 1 - \binom{n - c}{k} \Big/ \binom{n}{k}

    Args:
        n: Answers to each question.
        c: How many of them are right.
        k: At most the smallest n.

    Returns:
        An estimate for each question, float64: 0 for c = 0, and 1 where fewer than k are wrong.
        The mean over questions is the figure to report; pooling counts before is another number.

    Raises:
        ValueError: If k exceeds an n, or c does not lie between 0 and n.

    Numerics:
        As a product of k ratios, without factorials.

    References:
        Chen et al. 2021, arXiv:2107.03374, equation 1.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> pass_at_k(torch.tensor([10, 10]), torch.tensor([3, 0]), k=5)
        tensor([0.9167, 0.0000], dtype=torch.float64)
    """
    check_count("k", k)
    check_same_shape("n", n, "c", c)
    if can_read(n):
        if bool((n < k).any()):
            raise ValueError(
                f"k = {k} exceeds the {int(n.min())} answers to a question: there is no estimate"
            )
        if bool(((c < 0) | (c > n)).any()):
            raise ValueError("c must lie between 0 and n for each question")
    wrong = (n - c).double()[..., None]
    i = torch.arange(k, device=n.device, dtype=torch.float64)
    # Where fewer than k are wrong, one of the factors is 0.
    ratio = (wrong - i) / (n.double()[..., None] - i)
    return 1 - ratio.prod(-1)


def best_of_n_success(
    p: Float[Tensor, "*batch"], *, n: int, t: float, f: float
) -> Float[Tensor, "*batch"]:
    r"""Compute how often an answer is right that a verifier lets pass, out of n.

    With :math:`a = pt + (1 - p) f`, the probability that one answer passes,

    .. math:: \big(1 - (1 - a)^n\big) \frac{p t}{a} + (1 - a)^n \frac{p (1 - t)}{1 - a}

    One of the answers that pass is taken, and one of all where none does.

    Args:
        p: How often one answer is right.
        n: How many are drawn.
        t: How often a right answer passes.
        f: How often a wrong one does.

    Returns:
        The probability, float64.

    Raises:
        ValueError: If n is below 1, or a probability lies outside 0 to 1.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> p = torch.tensor(0.3)
        >>> [round(float(best_of_n_success(p, n=n, t=0.9, f=0.2)), 4) for n in (1, 4, 64)]
        [0.3, 0.5849, 0.6585]
    """
    check_count("n", n)
    _check_rates(p, t, f)
    right = p.double()
    a = right * t + (1 - right) * f
    passed, failed = right * t, right * (1 - t)
    # 1 - (1 - a)^n without cancellation where a is tiny; a = 0 has no answer that passes, and
    # (1 - a)^n / (1 - a) needs no division.
    any_passes = -torch.expm1(n * torch.log1p(-a))
    some = torch.where(a > 0, any_passes / torch.where(a > 0, a, 1.0), float(n))
    return some * passed + (1 - a) ** (n - 1) * failed


def verifier_ceiling(p: Float[Tensor, "*batch"], *, t: float, f: float) -> Float[Tensor, "*batch"]:
    r"""Compute what best-of-n tends to: how often an answer is right that passes.

    .. math:: \frac{p\,t}{p\,t + (1 - p)\,f}

    Args:
        p: How often one answer is right.
        t: How often a right answer passes.
        f: How often a wrong one does.

    Returns:
        The probability, float64. It is 1 only if no wrong answer passes (or none is given).

    Raises:
        ValueError: If a probability lies outside 0 to 1, or no answer ever passes.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> round(float(verifier_ceiling(torch.tensor(0.3), t=0.9, f=0.2)), 4)
        0.6585
    """
    _check_rates(p, t, f)
    right = p.double()
    a = right * t + (1 - right) * f
    if can_read(p) and bool((a == 0).any()):
        raise ValueError("no answer ever passes: t or f must be above 0 where p allows it")
    return right * t / a


def verifier_rates(
    right: Bool[Tensor, " answers"], accepted: Bool[Tensor, " answers"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Measure a verifier: how often it accepts right answers, and how often wrong ones.

    Args:
        right: Whether each answer is right, by a checker that one trusts.
        accepted: Whether the verifier accepts it.

    Returns:
        Its rate of true positives t and of false positives f, float64.

    Raises:
        ValueError: If the shapes differ, or one kind of answer is missing: then its rate is
            unknown.

    Book: :doc:`/book/frontiers/reasoning`

    Example:
        >>> yes = torch.tensor([True, True, False, False])
        >>> [float(r) for r in verifier_rates(yes, torch.tensor([True, False, False, False]))]
        [0.5, 0.0]
    """
    check_shape("right", right, (None,))
    check_same_shape("right", right, "accepted", accepted)
    if can_read(right) and (bool(right.all()) or not bool(right.any())):
        raise ValueError("both right and wrong answers are needed to measure a verifier")
    good, bad = right.double(), (~right).double()
    passed = accepted.double()
    return (good * passed).sum() / good.sum(), (bad * passed).sum() / bad.sum()


def _check_probability(name: str, p: Tensor) -> None:
    check_floating(name, p)
    if can_read(p) and not bool(((wide(p) >= 0) & (wide(p) <= 1)).all()):
        raise ValueError(f"{name} must hold probabilities, from 0 to 1")


def _check_rates(p: Tensor, t: float, f: float) -> None:
    _check_probability("p", p)
    if not (0 <= t <= 1 and 0 <= f <= 1):
        raise ValueError(f"t and f must be probabilities, got t = {t} and f = {f}")
