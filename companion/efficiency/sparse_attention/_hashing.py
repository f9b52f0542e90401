r"""Reformer: a query reads the keys that fall into its bucket, and buckets are found by hashing."""

from math import acos, pi

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_floating, check_in_range, randn, wide
from companion.transformer.attention._dense import softmax_or_zero
from companion.transformer.attention._inputs import full_precision

__all__ = [
    "amplified",
    "lsh_attention",
    "lsh_hash",
    "lsh_rotations",
    "simhash_collision",
]

#: The score of a token with itself: read only where nothing else is.
SELF = -1e5


def simhash_collision(cosine: float) -> float:
    r"""Return the probability that two vectors lie on one side of a random hyperplane.

    .. math:: \Pr[\mathrm{sgn}(r x^\top) = \mathrm{sgn}(r y^\top)] = 1 - \theta/\pi

    Args:
        cosine: :math:`\cos\theta`, from -1 to 1.

    Returns:
        The probability.

    Raises:
        ValueError: If the cosine is out of range.

    References:
        Charikar 2002, doi:10.1145/509907.509965, sec. 3; Goemans and Williamson 1995.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> round(simhash_collision(0.5), 4)
        0.6667
    """
    check_in_range("cosine", cosine, low=-1.0, high=1.0)
    return 1 - acos(cosine) / pi


def amplified(p: float, rounds: int) -> float:
    r"""Return the probability that at least one of several independent rounds succeeds.

    .. math:: 1 - (1 - p)^{n_r}

    Args:
        p: Probability of one round.
        rounds: Their number :math:`n_r`.

    Returns:
        The probability.

    Raises:
        ValueError: If a value is out of range.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> round(amplified(0.3, 8), 4)
        0.9424
    """
    check_in_range("p", p, low=0.0, high=1.0)
    check_count("rounds", rounds)
    return 1 - (1 - p) ** rounds


def lsh_rotations(
    width: int,
    n_buckets: int,
    rounds: int,
    *,
    generator: torch.Generator,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "rounds width half"]:
    """Draw the random directions of :func:`lsh_hash`: standard normal numbers.

    Args:
        width: Components of what is hashed.
        n_buckets: Buckets of a round, an even number.
        rounds: Independent rounds.
        generator: Where they are drawn from.
        device: Where they are made.
        dtype: Their type.

    Returns:
        Shape (rounds, width, n_buckets / 2).

    Raises:
        ValueError: If a number is out of range or ``n_buckets`` is odd.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> lsh_rotations(5, 4, 3, generator=torch.Generator()).shape
        torch.Size([3, 5, 2])
    """
    check_count("width", width)
    check_count("n_buckets", n_buckets, low=2)
    check_count("rounds", rounds)
    if n_buckets % 2:
        raise ValueError(f"n_buckets must be even, a direction and its opposite, got {n_buckets}")
    shape = (rounds, width, n_buckets // 2)
    return randn(*shape, generator=generator, device=device, dtype=dtype)


def lsh_hash(
    x: Float[Tensor, "*batch n width"], rotations: Float[Tensor, "rounds width half"]
) -> Integer[Tensor, "*batch rounds n"]:
    r"""Return the bucket of each vector, in each round.

    .. math:: h(x) = \arg\max\,[\,xR;\; -xR\,]

    Args:
        x: Vectors. Their lengths do not matter.
        rotations: The directions :math:`R` of each round, see :func:`lsh_rotations`.

    Returns:
        Buckets from 0 to :math:`b - 1`, for :math:`b/2` directions. With one direction this is
        the sign of :math:`x R`.

    Raises:
        ValueError: If the widths differ.

    References:
        Andoni et al. 2015, arXiv:1509.02897; Kitaev et al. 2020, arXiv:2001.04451, sec. 2.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> lsh_hash(torch.tensor([[2.0], [-3.0]]), torch.ones(1, 1, 1))
        tensor([[0, 1]])
    """
    if x.shape[-1] != rotations.shape[-2]:
        raise ValueError(
            f"x of width {x.shape[-1]} does not meet rotations of width {rotations.shape[-2]}"
        )
    turned = x.unsqueeze(-3) @ rotations
    return torch.cat([turned, -turned], -1).argmax(-1)


def lsh_attention(
    QK: Float[Tensor, "batch heads n key"],
    V: Float[Tensor, "batch heads n value"],
    *,
    rotations: Float[Tensor, "rounds key half"],
    chunk: int,
    causal: bool = False,
    real: Bool[Tensor, "batch n"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads n value"]:
    r"""Return the outputs of attention within buckets, over several rounds of hashing.

    In a round the tokens are sorted by bucket, and within a bucket by position, and cut into
    chunks. Token :math:`i` reads token :math:`j` if both have one bucket and :math:`j` lies in the
    chunk of :math:`i` or the one before. In the causal form it reads the latest tokens of its
    bucket up to itself, one chunk of them besides itself. With :math:`P_i` the union over the
    rounds,

    .. math:: O_i = \sum_{j \in P_i} \mathrm{softmax}_{j \in P_i}(s \, q_i k_j^\top) \, v_j,
        \qquad k_j = q_j / \lVert q_j \rVert

    A token reads itself only where there is nothing else.

    Args:
        QK: Queries, which are the keys too.
        V: Values.
        rotations: Random directions of each round, see :func:`lsh_rotations`.
        chunk: Tokens of a chunk.
        causal: Whether tokens read earlier ones only.
        real: False where a token is padding, which nobody reads.
        scale: Factor :math:`s`. ``None`` is :math:`1/\sqrt{d_k}`.

    Returns:
        The outputs. A token that may read nothing, not even itself, has output 0.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        In the causal form of the paper, where the chunks are cut decides what is read, and that
        depends on the buckets of later tokens: no gradient shows it, and yet outputs change with
        the future. Here the distance within the bucket decides, which depends on the past alone.

        Rounds are put together by their log-sum-exps, and the score of a pair that meets in
        :math:`c` rounds is lowered by :math:`\log c`, so that it counts once. Arithmetic is in
        float32 or better, under autocast too. :math:`8 n_r n c d` operations a head for chunks of
        :math:`c` tokens, the sorting and hashing not counted; no gradient flows through the
        buckets.

    References:
        Kitaev et al. 2020, arXiv:2001.04451, sec. 2 and appendix A.

    Book: :doc:`/book/efficiency/sparse_attention`

    Example:
        >>> x = torch.ones(1, 1, 3, 2, dtype=torch.float64)
        >>> values = torch.eye(3, dtype=torch.float64)[None, None]
        >>> one = torch.ones(1, 2, 1, dtype=torch.float64)
        >>> lsh_attention(x, values, rotations=one, chunk=4)[0, 0, 0]
        tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    check_count("chunk", chunk)
    batch, _, n, width = QK.shape
    if V.shape[:3] != QK.shape[:3]:
        raise ValueError(
            f"there must be a value for each token, got {tuple(QK.shape)}, {tuple(V.shape)}"
        )
    for name, tensor in (("QK", QK), ("V", V)):
        check_floating(name, tensor)
    if real is not None and real.shape != (batch, n):
        raise ValueError(f"real must have shape {(batch, n)}, got {tuple(real.shape)}")
    if n == 0:
        return V
    factor = width**-0.5 if scale is None else scale
    with full_precision(QK):
        O = _by_buckets(wide(QK), wide(V), rotations, chunk, causal, real, factor)  # noqa: E741
    return O.to(V.dtype)


def _by_buckets(
    q: Tensor,
    v: Tensor,
    rotations: Tensor,
    chunk: int,
    causal: bool,
    real: Tensor | None,
    scale: float,
) -> Tensor:
    """Compute :func:`lsh_attention` in the precision of the inputs."""
    n, width = q.shape[2:]
    rounds, half = rotations.shape[0], rotations.shape[2]
    buckets = lsh_hash(q.detach(), rotations.to(q.dtype))
    length = -(-n // chunk) * chunk
    # Padding, and tokens that fill the last chunk, have a bucket of their own, the last.
    if real is not None:
        buckets = buckets.masked_fill(~real[:, None, None], 2 * half)
    buckets = F.pad(buckets, (0, length - n), value=2 * half)
    place = torch.arange(length, device=q.device)
    # With the position in the key, no two are equal, and the order can be undone.
    order = (buckets * length + place).argsort(-1)
    undo = order.argsort(-1)
    # How far apart two tokens may be: chunks of the sorted tokens, or places among them.
    place_of, most = (undo, chunk) if causal else (undo // chunk, 1)
    tokens = order.view(*order.shape[:-1], -1, chunk)
    readers = _with_previous(tokens)

    ids = tokens.flatten(2), readers.flatten(2)
    q, v = (F.pad(t, (0, 0, 0, length - n)) for t in (q, v))
    k = F.normalize(q, dim=-1)
    queries = _rows(q, ids[0]).view(*tokens.shape, width)
    keys = _rows(k, ids[1]).view(*readers.shape, width)
    values = _rows(v, ids[1]).view(*readers.shape, v.shape[-1])
    scores = scale * queries @ keys.mT

    times = torch.zeros_like(scores)  # rounds in which the pair meets
    for r in range(rounds):
        mine, theirs = (_rows(buckets[:, :, r, :, None], index).squeeze(-1) for index in ids)
        near, far = (_rows(place_of[:, :, r, :, None], index).squeeze(-1) for index in ids)
        back = near.view(*tokens.shape, 1) - far.view(*readers.shape[:-1], 1, 2 * chunk)
        same = mine.view(*tokens.shape, 1) == theirs.view(*readers.shape[:-1], 1, 2 * chunk)
        times += same & (back >= 0) & (back <= most)
    i, j = tokens.unsqueeze(-1), readers.unsqueeze(-2)
    bucket = buckets.gather(-1, order).view_as(tokens)
    theirs = _with_previous(bucket).unsqueeze(-2)
    allowed = (bucket.unsqueeze(-1) == theirs) & (theirs < 2 * half)
    # The first chunk has none before it.
    first = torch.zeros_like(allowed[0, 0, 0])
    first[0, :, :chunk] = True
    allowed = allowed & ~first
    if causal:
        row = torch.arange(chunk, device=q.device).view(-1, 1)
        column = torch.arange(2 * chunk, device=q.device)
        allowed = allowed & (column <= row + chunk) & (column >= row)
    scores = scores - times.clamp(min=1).log()
    scores = scores.masked_fill(i == j, SELF).masked_fill(~allowed, -torch.inf)

    nothing = torch.isneginf(scores).all(-1)
    lse = scores.masked_fill(nothing.unsqueeze(-1), 0.0).logsumexp(-1)
    lse = lse.masked_fill(nothing, -torch.inf).flatten(3).gather(-1, undo)
    O = (softmax_or_zero(scores) @ values).flatten(3, 4)  # noqa: E741
    O = O.gather(3, undo.unsqueeze(-1).expand_as(O))  # noqa: E741
    merged = (softmax_or_zero(lse.mT).unsqueeze(-1) * O.transpose(2, 3)).sum(3)
    return merged[:, :, :n]


def _with_previous(chunks: Tensor) -> Tensor:
    """Put the chunk before in front of each: (..., chunks, c) to (..., chunks, 2c)."""
    return torch.cat([chunks.roll(1, -2), chunks], -1)


def _rows(t: Tensor, index: Tensor) -> Tensor:
    """Gather rows: (batch, heads, n, width) by (batch, heads, some)."""
    flat = index.flatten(2)
    return t.gather(2, flat.unsqueeze(-1).expand(-1, -1, -1, t.shape[-1]))
