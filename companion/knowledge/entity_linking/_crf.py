r"""A linear-chain conditional random field: its sums, its best paths, and what it is unsure of.

A path :math:`y_1,\dots,y_n` of tags has the score

.. math::

    s(x,y) = a_{y_1} + \sum_t \psi_{y_t}(x_t) + \sum_{t>1} T_{y_{t-1}y_t} + b_{y_n}

with emissions :math:`\psi`, transitions :math:`T` and, where given, scores :math:`a` and :math:`b`
of the first and the last tag. The probability of a path is :math:`e^{s(x,y)}/Z(x)`. All sums over
paths take :math:`n` steps of :math:`K^2` additions.

**Real tokens.** ``real`` says which tokens there are. The others are *dropped*: the chain goes from
each real token to the next real one, wherever padding stands (behind, in front, or between). What
stands there is not looked at, be it NaN.

**What is forbidden** has the score minus infinity, in the transitions, at the start or at the end.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from companion.core import can_read, check_count, check_floating, check_ids, wide_dtype

__all__ = [
    "CRFMarginals",
    "LinearChainCRF",
    "TagPaths",
    "crf_entropy",
    "crf_log_partition",
    "crf_marginals",
    "crf_nll",
    "crf_score",
    "k_best_paths",
    "viterbi",
]

NEVER = float("-inf")
#: Below this share of its step, a state that can be reached sends the sums to log space.
TINY = 1e-290

Reduction = Literal["mean", "sum", "none"]


class CRFMarginals(NamedTuple):
    """Probabilities of tags, and of pairs of neighboring tags.

    Attributes:
        tags: Probability of each tag at each token, shape ``"batch n tags"``; 0 where no token is.
        pairs: Expected number of each transition, summed over the tokens, shape
            ``"batch tags tags"``.
    """

    tags: Tensor
    pairs: Tensor


class TagPaths(NamedTuple):
    """Paths and their scores.

    Attributes:
        tags: Tags, shape ``"... n"``; -1 where no token is.
        score: Score of each path, shape ``"..."``.
    """

    tags: Tensor
    score: Tensor


class _Chain(NamedTuple):
    """What is computed with: real tokens first, in float32 or better."""

    emissions: Tensor  # batch n tags
    transitions: Tensor
    start: Tensor
    end: Tensor
    lengths: Tensor  # batch
    order: Tensor | None  # place of each token, real ones first; None where nothing moved


def _chain(
    emissions: Tensor,
    transitions: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    real: Tensor | None,
) -> _Chain:
    check_floating("emissions", emissions)
    check_floating("transitions", transitions)
    if emissions.ndim != 3 or 0 in emissions.shape:
        raise ValueError(
            f"emissions must have shape (batch, n, tags) and no empty axis, "
            f"got {tuple(emissions.shape)}"
        )
    batch, n, K = emissions.shape
    for name, given, shape in (
        ("transitions", transitions, (K, K)),
        ("start", start, (K,)),
        ("end", end, (K,)),
        ("real", real, (batch, n)),
    ):
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape} for emissions of shape "
                f"{tuple(emissions.shape)}, got {tuple(given.shape)}"
            )
    dtype = wide_dtype(torch.promote_types(emissions.dtype, transitions.dtype))
    psi, T = emissions.to(dtype), transitions.to(dtype)
    zero = T.new_zeros(K)
    a = zero if start is None else start.to(dtype)
    b = zero if end is None else end.to(dtype)
    order: Tensor | None = None
    if real is None:
        lengths = torch.full((batch,), n, device=psi.device)
    else:
        if real.dtype != torch.bool:
            raise ValueError(f"real must be boolean, got {real.dtype}: compare it, real != 0")
        lengths = real.sum(1)
        inside = torch.arange(n, device=real.device) < lengths[:, None]
        moved = True
        if can_read(real):
            if bool((lengths == 0).any()):
                row = int((lengths == 0).nonzero()[0])
                raise ValueError(f"row {row} of real has no token: leave such rows out")
            moved = not torch.equal(inside, real)
        if moved:
            order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
            psi = psi.gather(1, order[..., None].expand_as(psi))
        # Zeros where no token is: 0 times NaN would reach the gradients of all scores.
        psi = psi.masked_fill(~inside[..., None], 0.0)
    return _Chain(psi, T, a, b, lengths, order)


def _inside(chain: _Chain) -> Tensor:
    """Where tokens are, after the real ones were moved to the front."""
    n = chain.emissions.shape[1]
    return torch.arange(n, device=chain.lengths.device) < chain.lengths[:, None]


def _lse(x: Tensor, dim: int) -> Tensor:
    """Log-sum-exp whose gradient is 0, and not NaN, where all summands are minus infinity."""
    none = (x == NEVER).all(dim, keepdim=True)
    total = x.masked_fill(none, 0.0).logsumexp(dim)
    return total.masked_fill(none.squeeze(dim), NEVER)


def _forward_log(chain: _Chain) -> Tensor:
    """The log-partition in log space: the definition, for any device and any derivative."""
    psi, T, a, b, lengths, _ = chain
    alpha = a + psi[:, 0]
    for t in range(1, psi.shape[1]):
        step = _lse(alpha[:, :, None] + T, 1) + psi[:, t]
        alpha = torch.where((t < lengths)[:, None], step, alpha)
    return _lse(alpha + b, 1)


class _Sums(NamedTuple):
    log_z: Tensor  # batch
    forward: Tensor  # n batch tags; each row sums to 1
    backward: Tensor  # the same from the right, emission included, at the token's own place
    start: Tensor  # e to the start scores, less their maximum


def _reachable(ok: Tensor, allowed: Tensor, n: int) -> Tensor:
    """Which tags can stand at each step, as far as transitions say."""
    steps = [ok]
    for _ in range(n - 1):
        new = (steps[-1].double() @ allowed).bool()
        if torch.equal(new, steps[-1]):
            break
        steps.append(new)
    return torch.stack(steps + [steps[-1]] * (n - len(steps)))


def _scaled(chain: _Chain) -> _Sums | None:
    """Both recursions at once, in float64 and with each step scaled to sum to 1.

    ``None`` if a tag that can be reached had a share below ``TINY``: then digits were lost.
    """
    psi, T, a, b, lengths, _ = chain
    batch, n, K = psi.shape
    e = psi.transpose(0, 1).contiguous().double()
    high = e.amax(-1, keepdim=True)
    if not bool(high.isfinite().all()):
        return None
    x = (e - high).exp()
    back = lengths - 1 - torch.arange(n, device=lengths.device)[:, None]
    row = torch.arange(batch, device=lengths.device)
    mirror = (back.clamp_min(0) * batch + row).flatten()
    x2 = torch.stack([x, x.view(-1, K).index_select(0, mirror).view(n, batch, K)])
    edges = torch.stack([a, b]).double()
    top = edges.amax(-1, keepdim=True)
    highest = T.double().amax()
    if not bool(top.isfinite().all()) or not bool(highest.isfinite()):
        return None
    edge = (edges - top).exp()
    move = (T.double() - highest).exp()
    moves = torch.stack([move, move.t()])
    shares = torch.empty(2, n, batch, K, dtype=torch.float64)
    scale = torch.empty(2, n, batch, 1, dtype=torch.float64)
    steps = zip(shares.unbind(1), scale.unbind(1), x2.unbind(1), strict=True)
    before: Tensor | None = None
    for p, total, fit in steps:
        if before is None:
            torch.mul(fit, edge[:, None], out=p)
        else:
            torch.bmm(before, moves, out=p).mul_(fit)
        torch.sum(p, -1, keepdim=True, out=total)
        before = p.div_(total)
    inside = torch.arange(n, device=lengths.device)[:, None] < lengths
    small = ~(shares >= TINY)
    small &= inside[..., None]
    if bool(small.any()):
        allowed = (T > NEVER).double()
        for side, matrix in enumerate((allowed, allowed.t())):
            can = _reachable(edges[side] > NEVER, matrix, n)
            if bool((small[side] & can[:, None]).any()):
                return None
    logs = scale[0, ..., 0].log() + high[..., 0]
    last = (lengths - 1)[None]
    final = shares[0].gather(0, last[..., None].expand(1, batch, K))[0]
    ends = final @ edge[1]
    if not bool((ends > TINY).all()):
        return None
    log_z = torch.where(inside, logs, 0.0).sum(0) + ends.log() + top.sum()
    log_z = log_z + (lengths - 1) * highest
    backward = shares[1].view(-1, K).index_select(0, mirror).view(n, batch, K)
    return _Sums(log_z, shares[0], backward, edge[0])


def _expected(chain: _Chain, sums: _Sums, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Marginals times a weight for each row: of emissions, and summed of the other scores."""
    _, T, _, _, lengths, _ = chain
    n, batch, K = sums.forward.shape
    move = (T.double() - T.double().amax()).exp()
    before = torch.empty_like(sums.forward)
    before[0] = sums.start
    torch.mm(sums.forward[:-1].reshape(-1, K), move, out=before[1:].view(-1, K))
    joint = before.mul_(sums.backward)
    inside = torch.arange(n, device=lengths.device)[:, None] < lengths
    total = joint.sum(-1)
    ratio = torch.where(inside, weight / total, 0.0)[..., None]
    tags = joint.mul_(ratio)
    right = sums.backward[1:] * ratio[1:]
    pairs = (sums.forward[:-1].reshape(-1, K).t() @ right.reshape(-1, K)) * move
    last = (lengths - 1)[None, :, None].expand(1, batch, K)
    return tags, pairs, tags[0].sum(0), tags.gather(0, last)[0].sum(0)


class _LogPartition(torch.autograd.Function):
    """The log-partition and its gradient, which are the marginals."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        psi: Tensor,
        T: Tensor,
        a: Tensor,
        b: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        chain = _Chain(psi, T, a, b, lengths, None)
        sums = _scaled(chain)
        ctx.save_for_backward(psi, T, a, b, lengths)
        ctx.sums = sums  # type: ignore[attr-defined]
        return (_forward_log(chain) if sums is None else sums.log_z).to(psi.dtype)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (weight,) = grads
        psi, T, a, b, lengths = ctx.saved_tensors  # type: ignore[attr-defined]
        chain = _Chain(psi, T, a, b, lengths, None)
        sums = ctx.sums  # type: ignore[attr-defined]
        if sums is None or torch.is_grad_enabled():
            # Second derivatives are taken of the definition; so are sums of a wide range.
            again = torch.is_grad_enabled()
            scores = [s if again and s.requires_grad else s.detach() for s in (psi, T, a, b)]
            for score in scores:
                score.requires_grad_()
            one, two, three, four = scores
            with torch.enable_grad():
                total = _forward_log(_Chain(one, two, three, four, lengths, None))
                slopes = torch.autograd.grad(total, scores, weight, create_graph=again)
            return (*slopes, None)
        tags, pairs, first, last = _expected(chain, sums, weight.double())
        made = (tags.transpose(0, 1), pairs, first, last)
        return (*(m.to(psi.dtype) for m in made), None)


def _plain(*tensors: Tensor) -> bool:
    """Whether values can be read here, and no transform of functions is at work."""
    return all(can_read(t) and not is_functorch_wrapped_tensor(t) for t in tensors)


def _log_partition(chain: _Chain) -> Tensor:
    if _plain(*chain[:4]):
        out: Tensor = _LogPartition.apply(*chain[:5])  # type: ignore[no-untyped-call]
        return out
    return _forward_log(chain)


def _messages(chain: _Chain) -> tuple[Tensor, Tensor, Tensor]:
    """From the left up to each token, from the right down to it, and the log-partition.

    The first leaves the emission of its token out, the second has it in.
    """
    psi, T, a, b, lengths, _ = chain
    n = psi.shape[1]
    back = lengths[:, None] - 1 - torch.arange(n, device=psi.device)
    index = back.clamp_min(0)[..., None].expand_as(psi)
    mirrored = psi.gather(1, index)
    left, right = [a.expand_as(psi[:, 0])], [b + mirrored[:, 0]]
    for t in range(1, n):
        left.append(_lse((left[-1] + psi[:, t - 1])[:, :, None] + T, 1))
        right.append(_lse(right[-1][:, :, None] + T.t(), 1) + mirrored[:, t])
    from_left, from_right = torch.stack(left, 1), torch.stack(right, 1).gather(1, index)
    return from_left, from_right, _lse(a + from_right[:, 0], 1)


def _marginals(chain: _Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Marginals of tags, expected transitions of each row, and the log-partition."""
    psi, T, _, _, _, _ = chain
    inside = _inside(chain)
    if _plain(*chain[:4]) and not (
        torch.is_grad_enabled() and any(s.requires_grad for s in chain[:4])
    ):
        sums = _scaled(chain)
        if sums is not None:
            tags, _, _, _ = _expected(chain, sums, torch.ones((), dtype=torch.float64))
            # p(i, j) = p(j) p(i | j): the weight of j is its marginal over all ways into it.
            move = (T.double() - T.double().amax()).exp()
            into = sums.forward[:-1] @ move
            part = torch.where(into > 0, tags[1:] / into, 0.0)
            pairs = torch.einsum("tbi,ij,tbj->bij", sums.forward[:-1], move, part)
            return (
                tags.transpose(0, 1).to(psi.dtype),
                pairs.to(psi.dtype),
                sums.log_z.to(psi.dtype),
            )
    left, right, log_z = _messages(chain)
    # Masked before the exponential: over long padding it would be infinite, and its slope 0 / 0.
    logs = left + right - log_z[:, None, None]
    tags = logs.masked_fill(~inside[..., None], NEVER).exp()
    before = left[:, :-1] + psi[:, :-1]
    logs = before[..., :, None] + T + right[:, 1:, None, :] - log_z[:, None, None, None]
    pairs = logs.masked_fill(~inside[:, 1:, None, None], NEVER).exp().sum(1)
    return tags, pairs, log_z


def _back_to_places(values: Tensor, chain: _Chain, dim: int = 1) -> Tensor:
    """Undo the move of real tokens to the front."""
    if chain.order is None:
        return values
    index = chain.order
    if dim == 1 and values.ndim == 3:
        return values.scatter(1, index[..., None].expand_as(values), values)
    if values.ndim == 3:  # batch k n
        index = index[:, None].expand_as(values)
    return values.scatter(-1, index, values)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return values
    if reduction in ("mean", "sum"):
        return values.mean() if reduction == "mean" else values.sum()
    raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")


def _path_score(chain: _Chain, tags: Tensor) -> Tensor:
    psi, T, a, b, lengths, order = chain
    K = psi.shape[-1]
    if tuple(tags.shape) != tuple(psi.shape[:2]):
        raise ValueError(
            f"tags must have shape {tuple(psi.shape[:2])} for emissions of shape "
            f"{tuple(psi.shape)}, got {tuple(tags.shape)}"
        )
    inside = _inside(chain)
    y = tags if order is None else tags.gather(1, order)
    y = y.masked_fill(~inside, 0)
    check_ids("tags at real tokens", y, K)
    y = y.long()
    on = psi.gather(2, y[..., None])[..., 0]
    steps = y[:, :-1] * K + y[:, 1:]
    moved = T.reshape(-1).index_select(0, steps.flatten()).view_as(steps)
    score = torch.where(inside, on, 0.0).sum(1)
    score = score + torch.where(inside[:, 1:], moved, 0.0).sum(1)
    last = y.gather(1, lengths[:, None] - 1)[:, 0]
    return score + a[y[:, 0]] + b[last]


def crf_score(
    emissions: Float[Tensor, "batch n tags"],
    tags: Integer[Tensor, "batch n"],
    transitions: Float[Tensor, "tags tags"],
    *,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Score of a path: :math:`a_{y_1}+\sum_t\psi_{y_t}(x_t)+\sum_{t>1}T_{y_{t-1}y_t}+b_{y_n}`.

    Args:
        emissions: Scores :math:`\psi` of each tag at each token.
        tags: The path. What stands where no token is, is not looked at.
        transitions: Scores :math:`T_{ij}` of tag j after tag i.
        start: Scores of the first tag; 0 if left out.
        end: Scores of the last tag; 0 if left out.
        real: Where tokens are; everywhere if left out. The others are dropped.

    Returns:
        Scores, minus infinity for a forbidden path; float32 or better.

    Raises:
        ValueError: If shapes do not fit, a tag of a token is out of range, ``real`` is not
            boolean, or a row has no token.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> psi = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> crf_score(psi, torch.tensor([[0, 1]]), torch.tensor([[0.0, 5.0], [0.0, 0.0]]))
        tensor([8.])
    """
    return _path_score(_chain(emissions, transitions, start, end, real), tags)


def crf_log_partition(
    emissions: Float[Tensor, "batch n tags"],
    transitions: Float[Tensor, "tags tags"],
    *,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Logarithm of the sum over all paths, :math:`\log Z(x)=\log\sum_ye^{s(x,y)}`.

    The forward recursion: :math:`\alpha_t(j)=\psi_j(x_t)+\log\sum_ie^{\alpha_{t-1}(i)+T_{ij}}`.
    Its gradient by the emissions is the marginal probability of each tag.

    Args:
        emissions: Scores :math:`\psi` of each tag at each token.
        transitions: Scores :math:`T_{ij}` of tag j after tag i; minus infinity forbids it.
        start: Scores of the first tag; 0 if left out.
        end: Scores of the last tag; 0 if left out.
        real: Where tokens are; everywhere if left out. The others are dropped.

    Returns:
        One number a row, in nats; minus infinity if every path is forbidden.

    Raises:
        ValueError: As in :func:`crf_score`.

    Numerics:
        On the CPU both directions run at once in float64, each step scaled to sum to 1, and the
        gradient comes from what they leave. If a tag that can be reached has a share below 1e-290
        of its step, the recursion runs again in log space, which loses nothing. Elsewhere, when
        compiled, and for second derivatives it runs in log space, in float32 or better.

    References:
        Lafferty, McCallum and Pereira 2001, "Conditional Random Fields", ICML.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> crf_log_partition(torch.zeros(1, 3, 2), torch.zeros(2, 2))  # 3 log 2
        tensor([2.0794])
    """
    return _log_partition(_chain(emissions, transitions, start, end, real))


def crf_nll(
    emissions: Float[Tensor, "batch n tags"],
    tags: Integer[Tensor, "batch n"],
    transitions: Float[Tensor, "tags tags"],
    *,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    r"""Negative log-likelihood of paths, :math:`\log Z(x)-s(x,y)\ge0`.

    Args:
        emissions: Scores :math:`\psi` of each tag at each token.
        tags: The true path. What stands where no token is, is not looked at: -100 may stand there.
        transitions: Scores :math:`T_{ij}` of tag j after tag i; minus infinity forbids it.
        start: Scores of the first tag; 0 if left out.
        end: Scores of the last tag; 0 if left out.
        real: Where tokens are; everywhere if left out. The others are dropped.
        reduction: ``"mean"`` over rows, ``"sum"``, or ``"none"``.

    Returns:
        Nats, of a row or reduced over rows.

    Raises:
        ValueError: As in :func:`crf_score`; or if a true path is forbidden, for its loss would be
            infinite.

    Numerics:
        See :func:`crf_log_partition`.

    References:
        Lafferty, McCallum and Pereira 2001, "Conditional Random Fields", ICML.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> crf_nll(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]]), torch.zeros(2, 2))
        tensor(2.0794)
    """
    chain = _chain(emissions, transitions, start, end, real)
    score = _path_score(chain, tags)
    if can_read(score) and bool((score == NEVER).any()):
        row = int((score == NEVER).nonzero()[0])
        raise ValueError(
            f"the true path of row {row} is forbidden by the scores: mend its tags, or use the "
            "constraints at decoding only"
        )
    return _reduce(_log_partition(chain) - score, reduction)


def crf_marginals(
    emissions: Float[Tensor, "batch n tags"],
    transitions: Float[Tensor, "tags tags"],
    *,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
) -> CRFMarginals:
    r"""Probability of each tag at each token, :math:`P(y_t=j\mid x)`, and of neighboring pairs.

    Args:
        emissions: Scores :math:`\psi` of each tag at each token.
        transitions: Scores :math:`T_{ij}` of tag j after tag i; minus infinity forbids it.
        start: Scores of the first tag; 0 if left out.
        end: Scores of the last tag; 0 if left out.
        real: Where tokens are; everywhere if left out. The others are dropped.

    Returns:
        Marginals of tags, and expected transitions: their gradients pass. NaN in a row where every
        path is forbidden, for there is no distribution.

    Raises:
        ValueError: As in :func:`crf_score`.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> psi = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
        >>> crf_marginals(psi, torch.zeros(2, 2)).tags
        tensor([[[0.2689, 0.7311],
                 [0.5000, 0.5000]]])
    """
    chain = _chain(emissions, transitions, start, end, real)
    tags, pairs, _ = _marginals(chain)
    return CRFMarginals(_back_to_places(tags, chain), pairs)


def crf_entropy(
    emissions: Float[Tensor, "batch n tags"],
    transitions: Float[Tensor, "tags tags"],
    *,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Entropy of the distribution of paths, :math:`H=\log Z-E[s(x,y)]`.

    Args:
        emissions: Scores :math:`\psi` of each tag at each token.
        transitions: Scores :math:`T_{ij}` of tag j after tag i; minus infinity forbids it.
        start: Scores of the first tag; 0 if left out.
        end: Scores of the last tag; 0 if left out.
        real: Where tokens are; everywhere if left out. The others are dropped.

    Returns:
        Nats, from 0 to ``n log K``. Gradients pass. NaN where every path is forbidden.

    Raises:
        ValueError: As in :func:`crf_score`.

    Numerics:
        A difference: near 0 it keeps the digits of :math:`\log Z`, not its own.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> crf_entropy(torch.zeros(1, 3, 2), torch.zeros(2, 2))
        tensor([2.0794])
    """
    chain = _chain(emissions, transitions, start, end, real)
    psi, T, a, b, lengths, _ = chain
    tags, pairs, log_z = _marginals(chain)
    last = tags.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, psi.shape[-1]))[:, 0]

    def expected(weights: Tensor, scores: Tensor) -> Tensor:
        # What never happens has the score minus infinity and adds nothing.
        held = weights * scores.masked_fill(scores == NEVER, 0.0)
        return held.flatten(1).sum(1)

    mean = expected(tags, psi) + expected(pairs, T) + expected(tags[:, 0], a) + expected(last, b)
    return log_z - mean


def viterbi(
    emissions: Float[Tensor, "batch n tags"],
    transitions: Float[Tensor, "tags tags"],
    *,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
) -> TagPaths:
    r"""The path with the highest score, :math:`\arg\max_ys(x,y)`.

    Args:
        emissions: Scores :math:`\psi` of each tag at each token.
        transitions: Scores :math:`T_{ij}` of tag j after tag i; minus infinity forbids it.
        start: Scores of the first tag; 0 if left out.
        end: Scores of the last tag; 0 if left out.
        real: Where tokens are; everywhere if left out. The others are dropped.

    Returns:
        The best path of each row, -1 where no token is, and its score. Where every path is
        forbidden, the score is minus infinity and the path is all -1. Of equal ones any.

    Raises:
        ValueError: As in :func:`crf_score`.

    References:
        Viterbi 1967, doi:10.1109/TIT.1967.1054010.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> psi = torch.tensor([[[0.8, 0.2], [0.1, 0.9]]])
        >>> never = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])
        >>> viterbi(psi, never).tags
        tensor([[0, 1]])
    """
    chain = _chain(emissions, transitions, start, end, real)
    psi, T, a, b, lengths = (s.detach() for s in chain[:5])
    batch, n, K = psi.shape
    into = T.t().contiguous()
    best = a + psi[:, 0]
    scores, pointers = [best], []
    for t in range(1, n):
        best, pointer = (best[:, None, :] + into).max(-1)
        best = best + psi[:, t]
        scores.append(best)
        pointers.append(pointer)
    last = (lengths - 1)[:, None, None].expand(batch, 1, K)
    final = torch.stack(scores, 1).gather(1, last)[:, 0] + b
    score, tag = final.max(-1)
    path = [tag]
    for t in range(n - 1, 0, -1):
        before = pointers[t - 1].gather(1, path[-1][:, None])[:, 0]
        path.append(torch.where(t < lengths, before, path[-1]))
    tags = torch.stack(path[::-1], 1)
    nowhere = ~_inside(chain) | (score == NEVER)[:, None]
    return TagPaths(_back_to_places(tags.masked_fill(nowhere, -1), chain), score)


def k_best_paths(
    emissions: Float[Tensor, "batch n tags"],
    transitions: Float[Tensor, "tags tags"],
    k: int,
    *,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
    real: Bool[Tensor, "batch n"] | None = None,
) -> TagPaths:
    r"""The k paths with the highest scores, best first.

    Args:
        emissions: Scores :math:`\psi` of each tag at each token.
        transitions: Scores :math:`T_{ij}` of tag j after tag i; minus infinity forbids it.
        k: How many paths, 1 or more.
        start: Scores of the first tag; 0 if left out.
        end: Scores of the last tag; 0 if left out.
        real: Where tokens are; everywhere if left out. The others are dropped.

    Returns:
        Different paths, shape ``(batch, k, n)``, and their scores. Where a row has fewer paths that
        are allowed, the rest is -1 with the score minus infinity.

    Raises:
        ValueError: As in :func:`crf_score`; or if k is below 1.

    Numerics:
        :math:`n` steps that choose k of :math:`kK` numbers for each of K tags.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> psi = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]])
        >>> k_best_paths(psi, torch.zeros(2, 2), 3).tags
        tensor([[[1, 1],
                 [0, 1],
                 [1, 0]]])
    """
    check_count("k", k)
    chain = _chain(emissions, transitions, start, end, real)
    psi, T, a, b, lengths = (s.detach() for s in chain[:5])
    batch, n, K = psi.shape
    best = psi.new_full((batch, k, K), NEVER)
    best[:, 0] = a + psi[:, 0]
    pointers = []
    for t in range(1, n):
        ways = best[..., None] + T  # batch, rank, tag before, tag
        some, pointer = ways.reshape(batch, k * K, K).topk(k, dim=1)
        runs = (t < lengths)[:, None, None]
        best = torch.where(runs, some + psi[:, None, t], best)
        pointers.append(pointer)
    score, place = (best + b).reshape(batch, k * K).topk(k, dim=1)
    path = [place % K]
    for t in range(n - 1, 0, -1):
        rank, tag = place // K, place % K
        before = pointers[t - 1].gather(1, rank.clamp_max(k - 1)[..., None].expand(-1, -1, K))
        before = before.gather(2, tag[..., None])[..., 0]
        place = torch.where((t < lengths)[:, None], before, place)
        path.append(place % K)
    tags = torch.stack(path[::-1], 2)
    nowhere = ~_inside(chain)[:, None] | (score == NEVER)[..., None]
    return TagPaths(_back_to_places(tags.masked_fill(nowhere, -1), chain, dim=-1), score)


class LinearChainCRF(nn.Module):
    r"""A layer that scores whole paths of tags: learned transitions, starts and ends.

    Args:
        tags: Number K of tags.
        allowed: Which tag may follow which, K by K; all if left out.
        starts: Which tags may come first; all if left out.
        ends: Which tags may come last; all if left out.
        constrain: ``"always"`` forbids in training as well: the model spends no probability on
            what is not allowed, and a true path that is not allowed is an error. ``"decode"``
            forbids only in :meth:`decode`, :meth:`k_best`, :meth:`marginals` and :meth:`entropy`.

    Attributes:
        transitions: Scores of tag j after tag i, shape ``"tags tags"``; start at 0.
        start: Scores of the first tag.
        end: Scores of the last tag.

    Raises:
        ValueError: If there is no tag, a mask has another shape, or ``constrain`` is unknown.

    Book: :doc:`/book/knowledge/entity_linking`

    Example:
        >>> crf = LinearChainCRF(2)
        >>> crf(torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]]))
        tensor(2.0794, grad_fn=<MeanBackward0>)
    """

    def __init__(
        self,
        tags: int,
        *,
        allowed: Bool[Tensor, "tags tags"] | None = None,
        starts: Bool[Tensor, " tags"] | None = None,
        ends: Bool[Tensor, " tags"] | None = None,
        constrain: Literal["always", "decode"] = "always",
    ) -> None:
        super().__init__()
        check_count("tags", tags)
        if constrain not in ("always", "decode"):
            raise ValueError(f"constrain must be always or decode, got {constrain!r}")
        self.constrain = constrain
        self.transitions = nn.Parameter(torch.zeros(tags, tags))
        self.start = nn.Parameter(torch.zeros(tags))
        self.end = nn.Parameter(torch.zeros(tags))
        masks = (
            ("allowed", allowed, (tags, tags)),
            ("starts", starts, (tags,)),
            ("ends", ends, (tags,)),
        )
        for name, mask, shape in masks:
            if mask is not None and (tuple(mask.shape) != shape or mask.dtype != torch.bool):
                raise ValueError(
                    f"{name} must be boolean of shape {shape}, got {mask.dtype} of "
                    f"{tuple(mask.shape)}"
                )
            full = torch.ones(shape, dtype=torch.bool) if mask is None else mask.clone()
            self.register_buffer(name, full)

    allowed: Tensor
    starts: Tensor
    ends: Tensor

    def scores(self, *, training: bool = False) -> dict[str, Tensor]:
        """Transitions, starts and ends, with minus infinity for what is forbidden.

        Args:
            training: Whether they are for the loss; with ``constrain="decode"`` that forbids
                nothing.

        Returns:
            Keyword arguments of :func:`crf_nll` and :func:`viterbi`.
        """
        if training and self.constrain == "decode":
            return {"transitions": self.transitions, "start": self.start, "end": self.end}
        return {
            "transitions": self.transitions.masked_fill(~self.allowed, NEVER),
            "start": self.start.masked_fill(~self.starts, NEVER),
            "end": self.end.masked_fill(~self.ends, NEVER),
        }

    def forward(
        self,
        emissions: Float[Tensor, "batch n tags"],
        tags: Integer[Tensor, "batch n"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
        reduction: Reduction = "mean",
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Negative log-likelihood of the true paths; see :func:`crf_nll`."""
        scores = self.scores(training=True)
        transitions = scores.pop("transitions")
        return crf_nll(emissions, tags, transitions, **scores, real=real, reduction=reduction)

    def decode(
        self,
        emissions: Float[Tensor, "batch n tags"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
    ) -> TagPaths:
        """The best paths; see :func:`viterbi`."""
        return viterbi(emissions, **self.scores(), real=real)

    def k_best(
        self,
        emissions: Float[Tensor, "batch n tags"],
        k: int,
        *,
        real: Bool[Tensor, "batch n"] | None = None,
    ) -> TagPaths:
        """The k best paths; see :func:`k_best_paths`."""
        return k_best_paths(emissions, k=k, **self.scores(), real=real)

    def marginals(
        self,
        emissions: Float[Tensor, "batch n tags"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
    ) -> CRFMarginals:
        """How likely each tag is; see :func:`crf_marginals`."""
        return crf_marginals(emissions, **self.scores(), real=real)

    def entropy(
        self,
        emissions: Float[Tensor, "batch n tags"],
        *,
        real: Bool[Tensor, "batch n"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """How unsure the model is of the whole path; see :func:`crf_entropy`."""
        return crf_entropy(emissions, **self.scores(), real=real)
