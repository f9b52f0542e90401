r"""Losses whose gradients are policy gradients, as REINFORCE, PPO, GRPO and their kin have them.

A loss is minimized, so it is minus the objective. Log-probabilities are of written tokens, a row a
text; ``real`` says which places hold tokens that the policy chose. Places that do not count may
hold anything, also infinities.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.core import check_floating, check_in_range, check_shape, wide
from companion.frontiers.reinforcement._checks import (
    Normalize,
    average,
    check_mask,
    check_normalize,
    check_scores,
    per_token,
)
from companion.frontiers.reinforcement._kl import kl_estimate

__all__ = [
    "clipped_share",
    "grpo_loss",
    "importance_weights",
    "ppo_loss",
    "reinforce_loss",
    "value_loss",
]


def _ends(clip: float | tuple[float, float]) -> tuple[float, float]:
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    check_in_range("clip below", low, low=0.0, high=1.0)
    check_in_range("clip above", high, low=0.0)
    return low, high


def _inputs(log_probs: Tensor, real: Tensor) -> Tensor:
    check_floating("log_probs", log_probs)
    check_shape("log_probs", log_probs, (None, None))
    check_mask(real, log_probs)
    return wide(log_probs)


def reinforce_loss(
    log_probs: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch tokens"],
    real: Bool[Tensor, "batch tokens"],
    *,
    normalize: Normalize = "sum",
    length: int | None = None,
    total: float | Tensor | None = None,
) -> Float[Tensor, ""]:
    r"""Turn rewards into a gradient: REINFORCE, with whatever baseline is in the advantages.

    .. math:: L = -\frac1B \sum_i \sum_t \log \pi(a_{it} \mid s_{it}) \, A_{it}

    Its gradient is minus an unbiased estimate of :math:`\nabla \mathrm E R` if
    :math:`A_{it} = R_i - b`, where b does not depend on the token.

    Args:
        log_probs: Of the written tokens, with a gradient, under the policy that wrote them.
        advantages: One for each text or each token; no gradient passes.
        real: ``True`` for tokens that the policy chose.
        normalize: ``"sum"`` over the tokens of a text, as the gradient of an expectation has it, or
            another average, as in :func:`grpo_loss`.
        length: As in :func:`grpo_loss`.
        total: As in :func:`grpo_loss`.

    Returns:
        The loss, float32 or better. Its value says nothing; its gradient counts.

    Raises:
        ValueError: If shapes, dtypes or settings do not fit.

    References:
        Williams 1992, Machine Learning 8, theorem 1.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> reinforce_loss(logp, torch.tensor([0.5]), torch.ones(1, 2).bool())
        tensor(1.5000, grad_fn=<DivBackward0>)
    """
    check_normalize(normalize, length)
    log_probs = _inputs(log_probs, real)
    weighed = per_token(advantages, log_probs).detach()
    losses = -log_probs.masked_fill(~real, 0.0) * weighed.masked_fill(~real, 0.0)
    return average(losses, real, normalize, length=length, total=total)


def _log_ratio(log_probs: Tensor, old_log_probs: Tensor | None, real: Tensor, level: str) -> Tensor:
    """Log of new over old, of each token or, the same for all its tokens, of the text's mean."""
    if old_log_probs is None:
        old = log_probs.detach()
    else:
        check_scores("old_log_probs", old_log_probs, log_probs)
        old = wide(old_log_probs).detach()
    difference = (log_probs - old).masked_fill(~real, 0.0)
    if level == "token":
        return difference
    if level == "sequence":
        mean = difference.sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp_min(1)
        return mean.expand_as(difference)
    raise ValueError(f'level must be "token" or "sequence", got {level!r}')


def _surrogate(
    change: Tensor, advantages: Tensor, clip: float | tuple[float, float], dual_clip: float | None
) -> Tensor:
    """Minus the smaller of two products: the minimum comes after multiplying."""
    low, high = _ends(clip)
    if dual_clip is not None:
        check_in_range("dual_clip", dual_clip, low=1.0, open_low=True)
    clipped = change.clamp(1 - low, 1 + high)
    smaller = torch.minimum(change * advantages, clipped * advantages)
    if dual_clip is not None:
        smaller = torch.where(
            advantages < 0, torch.maximum(smaller, dual_clip * advantages), smaller
        )
    return -smaller


def ppo_loss(
    log_probs: Float[Tensor, "batch tokens"],
    old_log_probs: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch tokens"],
    real: Bool[Tensor, "batch tokens"],
    *,
    clip: float | tuple[float, float] = 0.2,
    dual_clip: float | None = None,
    normalize: Normalize = "token",
    length: int | None = None,
    total: float | Tensor | None = None,
) -> Float[Tensor, ""]:
    r"""Improve a policy on texts of an older one, but not by much: PPO's clipped objective.

    .. math:: L = -\mathrm{mean}_t \min\big(\rho_t \hat A_t,\;
        \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\, \hat A_t\big), \qquad
        \rho_t = \frac{\pi(a_t \mid s_t)}{\pi_{\mathrm{old}}(a_t \mid s_t)}

    A token has no gradient where :math:`\hat A > 0` and :math:`\rho > 1 + \epsilon`, or
    :math:`\hat A < 0` and :math:`\rho < 1 - \epsilon`. For :math:`\hat A < 0` and large
    :math:`\rho` the loss is not bounded, by design: ``dual_clip`` bounds it.

    Args:
        log_probs: Of the written tokens, with a gradient.
        old_log_probs: The same under the policy that wrote them.
        advantages: For each token, for example of :func:`gae`, or one for each text.
        real: ``True`` for tokens that the policy chose.
        clip: :math:`\epsilon`, or a pair of them, below and above.
        dual_clip: :math:`c > 1`: where the advantage is negative, the loss is at most
            :math:`-c \hat A`, and has no gradient there.
        normalize: As in :func:`grpo_loss`; by default the mean over all tokens.
        length: As in :func:`grpo_loss`.
        total: As in :func:`grpo_loss`.

    Returns:
        The loss, float32 or better.

    Raises:
        ValueError: If shapes, dtypes or settings do not fit.

    References:
        Schulman et al. 2017, arXiv:1707.06347, eq. 7; dual clip: Ye et al. 2020, arXiv:1912.09729,
        eq. 5; a wider clip above: Yu et al. 2025, arXiv:2503.14476 (DAPO).

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> rho, one = torch.tensor([[1.5, 0.5]]), torch.ones(1, 2)
        >>> ppo_loss(rho.log(), 0 * one, -one, one.bool())  # -1 times the mean of -1.5 and -0.8
        tensor(1.1500)
    """
    check_normalize(normalize, length)
    log_probs = _inputs(log_probs, real)
    change = _log_ratio(log_probs, old_log_probs, real, "token").exp()
    fixed = per_token(advantages, log_probs).detach().masked_fill(~real, 0.0)
    losses = _surrogate(change, fixed, clip, dual_clip)
    return average(losses, real, normalize, length=length, total=total)


def grpo_loss(
    log_probs: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch tokens"],
    real: Bool[Tensor, "batch tokens"],
    *,
    old_log_probs: Float[Tensor, "batch tokens"] | None = None,
    clip: float | tuple[float, float] = 0.2,
    dual_clip: float | None = None,
    surrogate: Literal["clip", "cispo"] = "clip",
    level: Literal["token", "sequence"] = "token",
    weights: Float[Tensor, "batch tokens"] | None = None,
    reference: Float[Tensor, "batch tokens"] | None = None,
    beta: float = 0.0,
    estimator: Literal["k2", "k3"] = "k3",
    corrected: bool = False,
    normalize: Normalize = "sequence",
    length: int | None = None,
    total: float | Tensor | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the loss of GRPO and of the variants that differ from it in one choice.

    .. math:: L = \frac1B \sum_i \frac{1}{|y_i|} \sum_t \Big[
        -\min\big(\rho_{it} \hat A_i, \mathrm{clip}(\rho_{it}, 1 - \epsilon, 1 + \epsilon)
        \hat A_i\big) + \beta\, k_3(it) \Big]

    Args:
        log_probs: Of the written tokens, with a gradient.
        advantages: One for each text, for example of :func:`grpo_advantages`, or for each token.
        real: ``True`` for tokens that the policy chose.
        old_log_probs: Under the policy that wrote the texts, computed as ``log_probs`` are. By
            default that policy is this one, and :math:`\rho = 1` with its gradient.
        clip: :math:`\epsilon`, or a pair, below and above. DAPO takes a wider one above.
        dual_clip: As in :func:`ppo_loss`.
        surrogate: ``"clip"`` is the formula. ``"cispo"`` is
            :math:`-\mathrm{sg}(\min(\rho, 1 + \epsilon)) \hat A \log \pi`: weights are cut and
            have no gradient, and no token loses its own.
        level: ``"token"``; or ``"sequence"`` for GSPO, where :math:`\rho` of all tokens of a text
            is the geometric mean of theirs.
        weights: What corrects for a sampler that is not the trainer's policy, from
            :func:`importance_weights`; it multiplies the first term alone.
        reference: Log-probabilities of the reference; needed exactly where ``beta`` is above 0.
        beta: Weight :math:`\beta \ge 0` of the divergence from the reference.
        estimator: ``"k3"``, as GRPO has it, or ``"k2"``, whose gradient on the policy's own texts
            is that of the divergence. ``"k1"`` has none there, and is refused.
        corrected: Multiply the estimate by :math:`\rho`, so that its mean is right on texts of an
            older policy, and its gradient right, too.
        normalize: How tokens are averaged. ``"sequence"``: mean of the means of texts, GRPO;
            tokens of long texts count less. ``"token"``: mean over all tokens, DAPO. ``"length"``:
            sums divided by ``length``, Dr. GRPO. ``"sum"``: mean of sums over texts.
        length: The constant of ``"length"``, such as the longest text allowed.
        total: Divide by this instead of the number of texts (or for ``"token"``, of tokens) here.
            Where a step is computed in parts, give that of the whole step, and add up.

    Returns:
        The loss, float32 or better.

    Raises:
        ValueError: If shapes, dtypes or settings do not fit, or an option would do nothing.

    References:
        Shao et al. 2024, arXiv:2402.03300, eq. 3; Yu et al. 2025, arXiv:2503.14476 (DAPO); Liu et
        al. 2025, arXiv:2503.20783 (Dr. GRPO); Zheng et al. 2025, arXiv:2507.18071 (GSPO); MiniMax
        2025, arXiv:2506.13585 (CISPO).

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> logp = torch.tensor([[-1.0, -2.0], [-0.5, 9.0]], requires_grad=True)
        >>> real = torch.tensor([[True, True], [True, False]])
        >>> grpo_loss(logp, torch.tensor([1.0, -1.0]), real).backward()
        >>> logp.grad  # the token of the short text counts twice as much
        tensor([[-0.2500, -0.2500],
                [ 0.5000,  0.0000]])
    """
    check_normalize(normalize, length)
    check_in_range("beta", beta, low=0.0, open_high=True)
    if (reference is None) != (beta == 0):
        raise ValueError(
            f"beta > 0 needs reference=, and reference= needs beta > 0: got beta={beta} and "
            f"{'no' if reference is None else 'a'} reference"
        )
    if estimator not in ("k2", "k3"):
        raise ValueError(
            f'estimator must be "k2" or "k3", got {estimator!r}: in a loss k1 has a gradient of '
            "mean 0, so put it into the rewards, by penalized_rewards"
        )
    if corrected and beta == 0:
        raise ValueError("corrected= is about the divergence, so it needs beta > 0")
    log_probs = _inputs(log_probs, real)
    change = _log_ratio(log_probs, old_log_probs, real, level).exp()
    fixed = per_token(advantages, log_probs).detach().masked_fill(~real, 0.0)
    if surrogate == "clip":
        losses = _surrogate(change, fixed, clip, dual_clip)
    elif surrogate == "cispo":
        if dual_clip is not None:
            raise ValueError('dual_clip= does nothing with surrogate="cispo": leave it out')
        cut = change.detach().clamp_max(1 + _ends(clip)[1])
        losses = -cut * fixed * log_probs.masked_fill(~real, 0.0)
    else:
        raise ValueError(f'surrogate must be "clip" or "cispo", got {surrogate!r}')
    if weights is not None:
        check_scores("weights", weights, log_probs)
        losses = losses * weights.detach().masked_fill(~real, 0.0)
    if reference is not None:
        check_scores("reference", reference, log_probs)
        away = kl_estimate(
            log_probs.masked_fill(~real, 0.0),
            reference.detach().masked_fill(~real, 0.0),
            estimator=estimator,
        )
        losses = losses + beta * (away * change if corrected else away)
    return average(losses, real, normalize, length=length, total=total)


def clipped_share(
    log_probs: Float[Tensor, "batch tokens"],
    old_log_probs: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch tokens"],
    real: Bool[Tensor, "batch tokens"],
    *,
    clip: float | tuple[float, float] = 0.2,
) -> Float[Tensor, ""]:
    r"""Compute the share of tokens whose gradient the clipping has taken away.

    Args:
        log_probs: As in :func:`ppo_loss`.
        old_log_probs: As in :func:`ppo_loss`.
        advantages: As in :func:`ppo_loss`.
        real: As in :func:`ppo_loss`.
        clip: As in :func:`ppo_loss`.

    Returns:
        The share, from 0 to 1. Only the side on which the clip acts counts: a large
        :math:`\rho` with a negative advantage is not clipped.

    Raises:
        ValueError: If shapes or dtypes do not fit.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> rho, one = torch.tensor([[1.5, 0.5, 1.0, 1.5]]), torch.ones(1, 4)
        >>> clipped_share(rho.log(), 0 * one, torch.tensor([[1.0, -1, -1, -1]]), one.bool())
        tensor(0.5000)
    """
    low, high = _ends(clip)
    log_probs = _inputs(log_probs, real)
    change = _log_ratio(log_probs, old_log_probs, real, "token").exp()
    fixed = per_token(advantages, log_probs)
    outside = ((fixed > 0) & (change > 1 + high)) | ((fixed < 0) & (change < 1 - low))
    return (outside & real).sum() / real.sum().clamp_min(1)


def value_loss(
    values: Float[Tensor, "batch tokens"],
    returns: Float[Tensor, "batch tokens"],
    real: Bool[Tensor, "batch tokens"],
    *,
    old_values: Float[Tensor, "batch tokens"] | None = None,
    clip: float | None = None,
) -> Float[Tensor, ""]:
    r"""Fit a critic to returns.

    .. math:: L = \tfrac12\, \mathrm{mean}_t \max\big((V_t - R_t)^2,\;
        (\mathrm{clip}(V_t, V_t^{\mathrm{old}} \pm c) - R_t)^2\big)

    Args:
        values: :math:`V_t`, with a gradient.
        returns: :math:`R_t`, from :func:`gae`.
        real: ``True`` for tokens that the policy chose.
        old_values: Values when the texts were written; with ``clip`` only.
        clip: How far a value may move and still gain. By default the loss is the plain square.

    Returns:
        The loss, float32 or better.

    Raises:
        ValueError: If shapes do not fit, or one of ``old_values`` and ``clip`` is missing.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> value_loss(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), torch.ones(1, 2).bool())
        tensor(2.5000)
    """
    values = _inputs(values, real)
    check_scores("returns", returns, values)
    goal = returns.detach().masked_fill(~real, 0.0)
    values = values.masked_fill(~real, 0.0)
    square = (values - goal).square()
    if (old_values is None) != (clip is None):
        raise ValueError("clip= is a distance from old_values=: pass both, or neither")
    if old_values is not None and clip is not None:
        check_scores("old_values", old_values, values)
        check_in_range("clip", clip, low=0.0, open_low=True)
        old = old_values.detach().masked_fill(~real, 0.0)
        near = old + (values - old).clamp(-clip, clip)
        square = torch.maximum(square, (near - goal).square())
    return 0.5 * average(square, real, "token")


def importance_weights(
    log_probs: Float[Tensor, "batch tokens"],
    sampler_log_probs: Float[Tensor, "batch tokens"],
    real: Bool[Tensor, "batch tokens"],
    *,
    level: Literal["token", "sequence", "geometric"] = "token",
    cap: float = 2.0,
    beyond: Literal["truncate", "mask"] = "truncate",
) -> Float[Tensor, "batch tokens"]:
    r"""Weigh texts that another program has written, with other rounding or filters.

    .. math:: w_t = \min\Big(\frac{\pi_{\mathrm{old}}(a_t \mid s_t)}
        {\pi_{\mathrm{sampler}}(a_t \mid s_t)},\; c\Big)

    Args:
        log_probs: Of the written tokens by the trainer, before its update.
        sampler_log_probs: By what really drew them, its temperature and filters included.
        real: ``True`` for tokens that were drawn.
        level: ``"token"``; ``"sequence"`` for the product over a text, which is exact and wild;
            ``"geometric"`` for its mean in logarithms.
        cap: :math:`c \ge 1`.
        beyond: What happens above the cap: ``"truncate"`` to it, or ``"mask"`` to 0.

    Returns:
        Weights without a gradient, float32 or better; 0 where no token was drawn.

    Raises:
        ValueError: If shapes or settings do not fit.

    References:
        Ionides 2008, Journal of Computational and Graphical Statistics 17 (truncation).

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> ours, theirs = torch.tensor([[0.9, 0.1, 0.6]]), torch.tensor([[0.3, 0.2, 0.6]])
        >>> importance_weights(ours.log(), theirs.log(), torch.ones(1, 3).bool())
        tensor([[2.0000, 0.5000, 1.0000]])
    """
    check_in_range("cap", cap, low=1.0)
    if beyond not in ("truncate", "mask"):
        raise ValueError(f'beyond must be "truncate" or "mask", got {beyond!r}')
    log_probs = _inputs(log_probs, real).detach()
    check_scores("sampler_log_probs", sampler_log_probs, log_probs)
    if level == "sequence":
        apart = _log_ratio(log_probs, sampler_log_probs, real, "token").sum(-1, keepdim=True)
        apart = apart.expand_as(log_probs)
    elif level in ("token", "geometric"):
        kind = "token" if level == "token" else "sequence"
        apart = _log_ratio(log_probs, sampler_log_probs, real, kind)
    else:
        raise ValueError(f'level must be "token", "sequence" or "geometric", got {level!r}')
    weights = apart.exp()
    if beyond == "truncate":
        weights = weights.clamp_max(cap)
    else:
        weights = weights.masked_fill(weights > cap, 0.0)
    return weights.masked_fill(~real, 0.0)
