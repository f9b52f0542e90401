"""T5's span corruption, and UL2's mixture of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import can_read, check_count, check_in_range, check_shape
from companion.pretraining.denoising._tokens import (
    Pair,
    Tokens,
    check_tokens,
    choose,
    enclose,
    pack,
    rounded,
)

__all__ = [
    "UL2",
    "Denoiser",
    "mixture_of_denoisers",
    "random_spans",
    "span_corruption",
    "span_counts",
    "split_spans",
]

#: Sentinels of T5's vocabulary: the last hundred of its 32,100 ids.
SENTINELS = 100


def span_counts(length: int, *, ratio: float = 0.15, mean: float = 3.0) -> tuple[int, int]:
    r"""Return how many tokens of a text are noise, and in how many spans.

    .. math:: k = \mathrm{clip}(\mathrm{round}(rn), 1, n - 1), \qquad
        s = \mathrm{clip}(\mathrm{round}(k/\mu), 1, \min(k, n - k))

    Args:
        length: Tokens :math:`n` of the text, 0 or more. Below 2 there is no noise.
        ratio: The share :math:`r`, in (0, 1).
        mean: Mean length :math:`\mu \ge 1` of a span; ``inf`` gives one span.

    Returns:
        :math:`k` and :math:`s`.

    Raises:
        ValueError: If an argument is out of its domain.

    Numerics:
        The product is rounded in float32, as in the published code, halves to the even number.
        Copies of it in float64 may differ by one where :math:`rn` is a half. That code has no
        upper limit of :math:`s`.

    References:
        C. Raffel et al., "T5", arXiv:1910.10683, section 3.1.4, and the published function
        ``random_spans_noise_mask``.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> span_counts(512)
        (77, 26)
    """
    check_count("length", length, low=0)
    noise, spans = _counts(torch.tensor(length), *_settings(ratio, mean))
    return int(noise), int(spans)


def _settings(ratio: float, mean: float) -> tuple[Tensor, Tensor]:
    check_in_range("ratio", ratio, low=0.0, high=1.0, open_low=True, open_high=True)
    check_in_range("mean", mean, low=1.0)
    return torch.tensor(ratio), torch.tensor(mean)


def _counts(length: Tensor, ratio: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    noise = rounded(ratio, length).clamp(min=1).minimum(length - 1).clamp(min=0)
    spans = (noise / mean).round().long().clamp(min=1)
    return noise, spans.minimum(noise).minimum(length - noise)


def random_spans(
    real: Bool[Tensor, "batch n"],
    *,
    ratio: float | Float[Tensor, " batch"] = 0.15,
    mean: float | Float[Tensor, " batch"] = 3.0,
    generator: torch.Generator,
) -> Bool[Tensor, "batch n"]:
    r"""Draw T5's spans of noise: :func:`span_counts` fixes their number and what they cover.

    The :math:`k` tokens of noise are cut into :math:`s` spans of length 1 or more, all ways to
    cut being equally likely; the other :math:`n - k` tokens likewise. The two kinds alternate,
    and *the text comes first*. So the first token is never noise, and the last one always is.

    Args:
        real: ``True`` for tokens, which come first in each row.
        ratio: Share of noise, in (0, 1); one number, or one a row.
        mean: Mean length of a span, 1 or more; one number, or one a row.
        generator: The source of randomness.

    Returns:
        ``True`` where a token is noise.

    Raises:
        ValueError: If ``ratio`` or ``mean`` is out of its domain or has another shape.

    References:
        C. Raffel et al., "T5", arXiv:1910.10683, section 3.1.4, and the published function
        ``random_spans_noise_mask``.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> random_spans(torch.ones(1, 20, dtype=torch.bool), generator=g).sum()
        tensor(3)
    """
    if real.ndim != 2 or real.dtype != torch.bool:
        raise ValueError(
            f"real must be Bool of shape (batch, n), got {real.dtype} of {tuple(real.shape)}"
        )
    batch, n = real.shape
    share, size = _rows("ratio", ratio, real), _rows("mean", mean, real)
    if can_read(share) and not bool(((share > 0) & (share < 1)).all()):
        raise ValueError(f"ratio must lie in (0, 1), got {ratio}")
    if can_read(size) and not bool((size >= 1).all()):
        raise ValueError(f"mean must be 1 or more, got {mean}")
    length = real.sum(1)
    noise, spans = _counts(length, share, size)
    line = torch.arange(n, device=real.device)

    def segments(items: Tensor) -> tuple[Tensor, Tensor]:
        """For each item its segment, when all cuts into ``spans`` segments are equally likely."""
        inside = line < items[:, None]
        cut = choose((spans - 1).clamp(min=0), inside & (line > 0), generator=generator)
        return cut.long().cumsum(1), inside

    noisy, is_noise = segments(noise)
    kept, is_kept = segments(length - noise)
    held = torch.zeros(batch, n, dtype=torch.long, device=real.device)
    held = held.scatter_add(1, kept, is_kept.long()).cumsum(1)  # text up to each segment's end
    place = torch.where(is_noise, line + held.gather(1, noisy), n)
    marks = torch.zeros(batch, n + 1, dtype=torch.bool, device=real.device)
    return marks.scatter(1, place, torch.ones_like(is_noise))[:, :n] & real


def _rows(name: str, value: float | Tensor, real: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        check_shape(name, value, (len(real),))
        return value.to(real.device, torch.float32)
    return torch.full((len(real),), value, device=real.device)


def split_spans(
    tokens: Tokens,
    spans: Bool[Tensor, "batch n"],
    *,
    sentinel: int,
    end: int | None = None,
    closing: bool = False,
    sentinels: int = SENTINELS,
    pad: int = 0,
) -> Pair:
    r"""Turn marked spans into what T5 reads and writes.

    With :math:`\sigma_k` the sentinel :math:`\sigma_0 - k`, and spans :math:`s_0, s_1, \dots`:

    .. math:: \text{source} = \dots \sigma_0 \dots \sigma_1 \dots, \qquad
        \text{target} = \sigma_0 \, s_0 \, \sigma_1 \, s_1 \dots

    Args:
        tokens: The rows.
        spans: ``True`` for noise. Neighboring marks form one span.
        sentinel: Id :math:`\sigma_0` of the first sentinel; the next have *falling* ids, as in
            T5's vocabulary, where the first is the last id.
        end: Id that ends source and target, or ``None``.
        closing: Whether the target ends with one more sentinel, as in the figure of the paper; the
            published code leaves it out.
        sentinels: How many sentinels the vocabulary has, 100 in T5's. A row that needs more is
            refused: their ids would be those of words.
        pad: The id that fills rows.

    Returns:
        Source and target.

    Raises:
        ValueError: If shapes differ, padding is not on the right, a span covers padding, or the
            sentinels run out: more spans than ``sentinels``, or ids that would fall below 0.

    References:
        C. Raffel et al., "T5", arXiv:1910.10683, figure 2.

    Book: :doc:`/book/pretraining/denoising`

    Example:
        >>> from companion.pretraining.denoising import pad_rows, unpad
        >>> text = pad_rows([[1, 2, 3, 4, 5, 6]])
        >>> pair = split_spans(text, torch.tensor([[0, 0, 1, 1, 0, 1]]).bool(), sentinel=99)
        >>> unpad(pair.source), unpad(pair.target)
        ([[1, 2, 99, 5, 98]], [[99, 3, 4, 98, 6]])
    """
    check_tokens("tokens", tokens)
    check_count("sentinel", sentinel, low=0)
    check_count("sentinels", sentinels)
    ids, real = tokens
    check_shape("spans", spans, tuple(ids.shape))
    first = spans & ~torch.nn.functional.pad(spans[:, :-1], (1, 0))
    index = first.long().cumsum(1)
    if can_read(spans):
        if bool((spans & ~real).any()):
            raise ValueError("spans must cover real tokens only")
        most = int(index.max()) + closing if index.numel() else 0
        there = min(sentinels, sentinel + 1)
        if most > there:
            raise ValueError(
                f"a row needs {most} sentinels, and from id {sentinel} down there are {there}: cut "
                "the text into shorter rows, mark fewer spans, or say with sentinels= how many "
                "there are"
            )
    signs = sentinel + 1 - index
    source = pack(torch.where(first, signs, ids), real & (first | ~spans), pad=pad)
    slots = torch.stack([signs, ids], -1).flatten(1)
    target = pack(slots, torch.stack([first, spans], -1).flatten(1), pad=pad)
    if closing:
        target = enclose(target, end=(sentinel - first.sum(1)).to(ids.dtype))
    if end is not None:
        source, target = enclose(source, end=end), enclose(target, end=end)
    return Pair(source, target)


def span_corruption(
    tokens: Tokens,
    *,
    sentinel: int,
    ratio: float | Float[Tensor, " batch"] = 0.15,
    mean: float | Float[Tensor, " batch"] = 3.0,
    end: int | None = None,
    closing: bool = False,
    sentinels: int = SENTINELS,
    pad: int = 0,
    generator: torch.Generator,
) -> Pair:
    r"""Corrupt rows as T5 does: :func:`random_spans`, then :func:`split_spans`.

    With :math:`k` tokens of noise in :math:`s` spans, and an end token each,

    .. math:: |\text{source}| = n - k + s + 1, \qquad |\text{target}| = k + s + 1

    Args:
        tokens: The rows.
        sentinel: Id of the first sentinel; the next have falling ids.
        ratio: Share of noise, in (0, 1); one number, or one a row.
        mean: Mean length of a span, 1 or more; one number, or one a row.
        end: Id that ends source and target, or ``None``.
        closing: Whether the target ends with one more sentinel.
        sentinels: How many there are, as in :func:`split_spans`.
        pad: The id that fills rows.
        generator: The source of randomness.

    Returns:
        Source and target; :func:`trim` drops the columns that are padding in every row.

    Raises:
        ValueError: If an argument is out of its domain, padding is not on the right, or the
            sentinels run out.

    References:
        C. Raffel et al., "T5", arXiv:1910.10683, section 3.1.4.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("tokens", tokens)
    spans = random_spans(tokens.real, ratio=ratio, mean=mean, generator=generator)
    return split_spans(
        tokens, spans, sentinel=sentinel, end=end, closing=closing, sentinels=sentinels, pad=pad
    )


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    r"""One component of a mixture: how much is corrupted, and in spans of which length.

    Attributes:
        mode: ``"R"`` (regular), ``"S"`` (sequential) or ``"X"`` (extreme), or a name of yours.
        ratio: Share of noise :math:`r`, in (0, 1).
        mean: Mean length :math:`\mu \ge 1` of a span; ``inf`` for a single span, which is the end
            of the text, since T5's spans alternate and the text comes first.

    Raises:
        ValueError: If a number is out of its domain.

    Book: :doc:`/book/pretraining/denoising`
    """

    mode: str
    ratio: float
    mean: float

    def __post_init__(self) -> None:
        _settings(self.ratio, self.mean)


#: The seven denoisers of UL2 (Y. Tay et al., arXiv:2205.05131, table 1).
UL2 = (
    Denoiser(mode="R", ratio=0.15, mean=3.0),
    Denoiser(mode="R", ratio=0.15, mean=8.0),
    Denoiser(mode="S", ratio=0.25, mean=float("inf")),
    Denoiser(mode="X", ratio=0.5, mean=3.0),
    Denoiser(mode="X", ratio=0.5, mean=8.0),
    Denoiser(mode="X", ratio=0.15, mean=64.0),
    Denoiser(mode="X", ratio=0.5, mean=64.0),
)


def mixture_of_denoisers(
    tokens: Tokens,
    *,
    sentinel: int,
    denoisers: Sequence[Denoiser] = UL2,
    weights: Sequence[float] | None = None,
    modes: Mapping[str, int] | None = None,
    end: int | None = None,
    sentinels: int = SENTINELS,
    pad: int = 0,
    generator: torch.Generator,
) -> tuple[Pair, Integer[Tensor, " batch"]]:
    r"""Corrupt each row by a denoiser drawn for it: a sample of the mixture.

    .. math:: L = \sum_k \pi_k L_k

    A mean over texts of the loss of each is an unbiased estimate of this :math:`L`. A mean over
    all tokens of a batch, as in :func:`seq2seq_loss`, also weighs a denoiser by the length of its
    targets.

    Args:
        tokens: The rows.
        sentinel: Id of the first sentinel; the next have falling ids.
        denoisers: The components.
        weights: Their weights :math:`\pi`, not necessarily normalized; equal by default.
        modes: For each mode the id that is put before the source, so that a reader of the model
            can ask for it later; none by default.
        end: Id that ends source and target, or ``None``.
        sentinels: How many there are, as in :func:`split_spans`.
        pad: The id that fills rows.
        generator: The source of randomness.

    Returns:
        Source and target, and for each row the index of its denoiser.

    Raises:
        ValueError: If there is no denoiser, weights do not fit, a mode has no id, or the
            sentinels run out.

    References:
        Y. Tay et al., "UL2", arXiv:2205.05131, section 3.1 and table 1.

    Book: :doc:`/book/pretraining/denoising`
    """
    check_tokens("tokens", tokens)
    if not denoisers:
        raise ValueError("denoisers must hold at least one")
    shares = torch.ones(len(denoisers)) if weights is None else torch.tensor(list(weights)).float()
    if len(shares) != len(denoisers) or bool((shares < 0).any()) or float(shares.sum()) <= 0:
        raise ValueError(
            f"weights must be {len(denoisers)} numbers, 0 or more and not all 0, got {weights}"
        )
    missing = [] if modes is None else [d.mode for d in denoisers if d.mode not in modes]
    if missing:
        raise ValueError(f"modes must name an id for each mode, {missing[0]!r} has none")
    device = tokens.ids.device
    drawn = torch.multinomial(
        shares.to(generator.device), len(tokens.ids), replacement=True, generator=generator
    ).to(device)
    ratio = torch.tensor([d.ratio for d in denoisers], device=device)[drawn]
    mean = torch.tensor([d.mean for d in denoisers], device=device)[drawn]
    pair = span_corruption(
        tokens,
        sentinel=sentinel,
        ratio=ratio,
        mean=mean,
        end=end,
        sentinels=sentinels,
        pad=pad,
        generator=generator,
    )
    if modes is not None:
        first = torch.tensor([modes[d.mode] for d in denoisers], device=device)[drawn]
        pair = Pair(enclose(pair.source, start=first), pair.target)
    return pair, drawn
