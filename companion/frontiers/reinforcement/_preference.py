r"""Learning from comparisons: a reward model first, or the policy at once.

Log-probabilities are of whole answers given their prompts: sums over the tokens of the answer,
its end included and the prompt left out. Chosen answers come first, rejected ones second.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn.functional import logsigmoid

from companion.core import check_floating, check_in_range, check_same_shape, check_shape, wide

__all__ = [
    "DPO",
    "bradley_terry_loss",
    "dpo_loss",
    "fit_bradley_terry",
    "kto_loss",
    "simpo_loss",
]


class DPO(NamedTuple):
    r"""What :func:`dpo_loss` returns.

    Attributes:
        loss: The mean over pairs.
        chosen: :math:`\hat r_w = \beta \log(\pi / \pi_{\mathrm{ref}})` of the chosen answers,
            without a gradient. Watch it: it may fall although the loss falls.
        rejected: :math:`\hat r_l` of the rejected ones.
    """

    loss: Tensor
    chosen: Tensor
    rejected: Tensor


def bradley_terry_loss(
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    *,
    margin: Float[Tensor, " pairs"] | None = None,
) -> Float[Tensor, ""]:
    r"""Fit rewards to comparisons.

    .. math:: L = -\mathrm{mean} \log \sigma(r_w - r_l), \qquad
        P(y_w \succ y_l) = \sigma(r_w - r_l)

    Args:
        chosen: Rewards :math:`r_w`.
        rejected: Rewards :math:`r_l`.
        margin: By how much a chosen answer should lead; 0 by default.

    Returns:
        The loss in nats, float32 or better. It leaves the zero of rewards open.

    Raises:
        ValueError: If the shapes differ or there is no pair.

    References:
        Bradley and Terry 1952, Biometrika 39; Ouyang et al. 2022, arXiv:2203.02155, eq. 1.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]))  # log 2
        tensor(0.6931)
    """
    _check_pairs(chosen, rejected)
    ahead = wide(chosen) - wide(rejected)
    if margin is not None:
        check_same_shape("chosen", chosen, "margin", margin)
        ahead = ahead - margin
    return -logsigmoid(ahead).mean()


def _check_pairs(chosen: Tensor, rejected: Tensor, **more: Tensor) -> None:
    check_floating("chosen", chosen)
    check_shape("chosen", chosen, (None,))
    if chosen.shape[0] == 0:
        raise ValueError("there is no pair: pass one at least")
    for name, other in {"rejected": rejected, **more}.items():
        check_floating(name, other)
        check_same_shape("chosen", chosen, name, other)


def fit_bradley_terry(
    wins: Float[Tensor, "players players"] | Integer[Tensor, "players players"],
    *,
    prior: float = 0.0,
    steps: int = 50,
) -> Float[Tensor, " players"]:
    r"""Find the rewards that make given results of comparisons most likely.

    .. math:: \max_r \sum_{ij} w_{ij} \log \sigma(r_i - r_j) - \frac{c}{2} \sum_i r_i^2

    Args:
        wins: :math:`w_{ij}`, how often i was preferred to j.
        prior: :math:`c \ge 0`. Above 0 there is a finite answer for any results.
        steps: Most steps of Newton's method.

    Returns:
        Rewards with mean 0, float32 or better.

    Raises:
        ValueError: If the matrix is not square or has a negative entry; without a prior, if the
            answer is not finite: some group has never lost to, or never met, the others.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> fit_bradley_terry(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))  # half of log 3, and minus it
        tensor([ 0.5493, -0.5493])
    """
    check_shape("wins", wins, (None, None))
    check_shape("wins", wins, (wins.shape[0], wins.shape[0]))
    check_in_range("prior", prior, low=0.0, open_high=True)
    w = wide(wins)
    n = len(w)
    if not w.is_meta:
        if not bool(((w >= 0) & w.isfinite()).all()):
            raise ValueError("wins must be 0 or more, and finite")
        if prior == 0 and not _connected(w):
            raise ValueError(
                "some players have never lost to the others, or never met them, so the best "
                "rewards are infinite: compare more, or pass prior > 0"
            )
    games = w + w.T
    r = w.new_zeros(n)
    eye = torch.eye(n, dtype=w.dtype, device=w.device)
    for _ in range(steps):
        p = torch.sigmoid(r[:, None] - r)
        slope = w.sum(1) - (games * p).sum(1) - prior * r
        bend = games * p * (1 - p)
        hessian = torch.diag(bend.sum(1)) - bend + prior * eye + 1.0 / n  # fixes the mean
        move = torch.linalg.solve(hessian, slope)
        # Newton's step may overshoot where results are lopsided.
        r = r + move / move.abs().amax().clamp_min(1.0)
        r = r - r.mean()
    return r


def _connected(wins: Tensor) -> bool:
    """Whether a chain of wins leads from each player to each other one."""
    reach = (wins > 0) | torch.eye(len(wins), dtype=torch.bool, device=wins.device)
    for _ in range(max(len(wins) - 1, 1).bit_length()):
        reach = (reach.float() @ reach.float()) > 0
    return bool(reach.all())


def dpo_loss(
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    reference_chosen: Float[Tensor, " pairs"],
    reference_rejected: Float[Tensor, " pairs"],
    *,
    beta: float = 0.1,
    variant: Literal["sigmoid", "ipo", "hinge"] = "sigmoid",
    smoothing: float = 0.0,
    tokens: tuple[Integer[Tensor, " pairs"], Integer[Tensor, " pairs"]] | None = None,
) -> DPO:
    r"""Learn a policy from comparisons, without a reward model.

    .. math:: L = -\mathrm{mean} \log \sigma(\hat r_w - \hat r_l), \qquad
        \hat r = \beta \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

    Args:
        chosen: :math:`\log \pi(y_w \mid x)`, with a gradient.
        rejected: :math:`\log \pi(y_l \mid x)`, with a gradient.
        reference_chosen: :math:`\log \pi_{\mathrm{ref}}(y_w \mid x)`.
        reference_rejected: :math:`\log \pi_{\mathrm{ref}}(y_l \mid x)`.
        beta: :math:`\beta > 0`: how dear it is to leave the reference. With ``tokens`` it belongs
            to means, so it must be larger by about the length of an answer.
        variant: ``"sigmoid"`` is DPO. ``"ipo"`` is
            :math:`\big(\log\frac{\pi_w}{\pi_{\mathrm{ref},w}}
            - \log\frac{\pi_l}{\pi_{\mathrm{ref},l}} - \frac{1}{2\beta}\big)^2`, which stops at a
            finite margin. ``"hinge"`` is :math:`\max(0, 1 - \hat r_w + \hat r_l)`.
        smoothing: Probability below 1/2 that a label is wrong, as conservative DPO takes it; for
            ``"sigmoid"`` alone.
        tokens: Lengths of the chosen and of the rejected answers: log-ratios are then divided by
            them, as for length-normalized DPO, and as trl does for IPO.

    Returns:
        The loss, and the rewards that the policy implies.

    Raises:
        ValueError: If shapes or settings do not fit.

    Numerics:
        By ``logsigmoid``, which neither overflows nor loses the gradient of a pair that is far
        wrong.

    References:
        Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Azar et al. 2023, arXiv:2310.12036, eq. 17
        (IPO; :math:`\tau` is our :math:`\beta`); Zhao et al. 2023, arXiv:2305.10425 (hinge).

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> pair = [torch.tensor([x]) for x in (-10.0, -12.0, -11.0, -11.0)]
        >>> dpo_loss(*pair, beta=0.1).loss
        tensor(0.5981)
    """
    _check_pairs(
        chosen,
        rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    check_in_range("beta", beta, low=0.0, open_low=True, open_high=True)
    check_in_range("smoothing", smoothing, low=0.0, high=0.5, open_high=True)
    if variant not in ("sigmoid", "ipo", "hinge"):
        raise ValueError(f'variant must be "sigmoid", "ipo" or "hinge", got {variant!r}')
    if smoothing and variant != "sigmoid":
        raise ValueError(f'smoothing= is for variant="sigmoid" alone, got {variant!r}')
    up = wide(chosen) - wide(reference_chosen).detach()
    down = wide(rejected) - wide(reference_rejected).detach()
    if tokens is not None:
        up, down = (
            ratio / _lengths(name, count, chosen)
            for name, ratio, count in zip(
                ("tokens of the chosen", "tokens of the rejected"), (up, down), tokens, strict=True
            )
        )
    ahead = up - down
    if variant == "ipo":
        loss = (ahead - 1 / (2 * beta)).square()
    elif variant == "hinge":
        loss = torch.relu(1 - beta * ahead)
    else:
        loss = -logsigmoid(beta * ahead)
        if smoothing:
            loss = (1 - smoothing) * loss - smoothing * logsigmoid(-beta * ahead)
    return DPO(loss.mean(), beta * up.detach(), beta * down.detach())


def _lengths(name: str, count: Tensor, like: Tensor) -> Tensor:
    check_same_shape("chosen", like, name, count)
    return count.to(wide(like).dtype).clamp_min(1)


def simpo_loss(
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    tokens: tuple[Integer[Tensor, " pairs"], Integer[Tensor, " pairs"]],
    *,
    beta: float = 2.0,
    margin: float = 0.5,
) -> Float[Tensor, ""]:
    r"""Learn from comparisons by mean log-probabilities, without a reference.

    .. math:: L = -\mathrm{mean} \log \sigma\Big(\frac{\beta}{|y_w|} \log \pi(y_w \mid x)
        - \frac{\beta}{|y_l|} \log \pi(y_l \mid x) - \gamma\Big)

    Args:
        chosen: :math:`\log \pi(y_w \mid x)`, sums over tokens.
        rejected: :math:`\log \pi(y_l \mid x)`, sums over tokens.
        tokens: Lengths of both, 1 or more.
        beta: :math:`\beta > 0`.
        margin: :math:`\gamma \ge 0`.

    Returns:
        The loss, float32 or better.

    Raises:
        ValueError: If shapes or settings do not fit.

    References:
        Meng, Xia and Chen 2024, arXiv:2405.14734, eq. 6.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> one = torch.tensor([1])
        >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.0]), (one, one), margin=0.0)
        tensor(0.6931)
    """
    _check_pairs(chosen, rejected)
    check_in_range("beta", beta, low=0.0, open_low=True, open_high=True)
    check_in_range("margin", margin, low=0.0, open_high=True)
    up = wide(chosen) / _lengths("tokens of the chosen", tokens[0], chosen)
    down = wide(rejected) / _lengths("tokens of the rejected", tokens[1], chosen)
    return -logsigmoid(beta * (up - down) - margin).mean()


def kto_loss(
    log_probs: Float[Tensor, " answers"],
    reference: Float[Tensor, " answers"],
    desirable: Bool[Tensor, " answers"],
    *,
    kl: float | Float[Tensor, ""] = 0.0,
    beta: float = 0.1,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Float[Tensor, ""]:
    r"""Learn from answers that are each called good or bad, without pairs.

    .. math:: L = \mathrm{mean}\; \lambda_y \big(1 - \sigma(\pm(\hat r - \beta z))\big), \qquad
        \hat r = \beta \log\frac{\pi}{\pi_{\mathrm{ref}}}

    with plus for good answers and minus for bad ones.

    Args:
        log_probs: :math:`\log \pi(y \mid x)`, with a gradient.
        reference: :math:`\log \pi_{\mathrm{ref}}(y \mid x)`.
        desirable: ``True`` for good answers.
        kl: :math:`z`, an estimate of the divergence from the reference, which gets no gradient and
            is set to 0 where it is negative.
        beta: :math:`\beta > 0`.
        weights: :math:`\lambda` of good and of bad answers.

    Returns:
        The loss, float32 or better.

    Raises:
        ValueError: If shapes or settings do not fit.

    References:
        Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8, as 1 minus the value.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> same = torch.tensor([-3.0, -5.0])
        >>> kto_loss(same, same, torch.tensor([True, False]))
        tensor(0.5000)
    """
    _check_pairs(log_probs, reference)
    check_shape("desirable", desirable, tuple(log_probs.shape))
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable must be boolean, got {desirable.dtype}")
    check_in_range("beta", beta, low=0.0, open_low=True, open_high=True)
    for weight in weights:
        check_in_range("weights", weight, low=0.0, open_high=True)
    ratio = wide(log_probs) - wide(reference).detach()
    zero = torch.as_tensor(kl, dtype=ratio.dtype, device=ratio.device).detach().clamp_min(0.0)
    good = weights[0] * torch.sigmoid(-beta * (ratio - zero))
    bad = weights[1] * torch.sigmoid(beta * (ratio - zero))
    return torch.where(desirable, good, bad).mean()
