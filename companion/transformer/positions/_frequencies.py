r"""How fast each pair of a rotary embedding turns, and the ways to slow it for longer texts.

All scalings answer one question: a model has seen angles :math:`m\omega_i` for positions
:math:`m` below its training context; which frequencies keep the angles familiar on a text that is
:math:`s` times as long? Each scaling is a frozen dataclass that maps the plain frequencies to the
scaled ones. They equal the entries of ``transformers``' ``ROPE_INIT_FUNCTIONS``.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from companion.core import check_count, check_in_range
from companion.transformer.positions._checks import check_even

__all__ = [
    "DynamicNTKScaling",
    "LinearScaling",
    "Llama3Scaling",
    "NTKScaling",
    "RopeScaling",
    "YarnScaling",
    "rope_frequencies",
]


def _plain(dim: int, base: float | Tensor, like: Tensor) -> Tensor:
    exponents = torch.arange(0, dim, 2, device=like.device).to(like.dtype) / dim
    return 1.0 / base**exponents


@dataclass(frozen=True)
class RopeScaling(ABC):
    """What every scaling has: a factor, a rule for the frequencies, a factor on cos and sin.

    Attributes:
        factor: How many times longer the text may be, 1 or more.
    """

    factor: float
    #: Whether the frequencies depend on the length of the text at hand.
    dynamic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_in_range("factor", self.factor, low=1.0, high=math.inf, open_high=True)

    @abstractmethod
    def frequencies(
        self, plain: Float[Tensor, " pairs"], *, base: float, length: int | Tensor | None = None
    ) -> Float[Tensor, " pairs"]:
        """Scale the plain frequencies.

        Args:
            plain: Frequencies in radians a position, fastest first.
            base: The base they were made with.
            length: Number of positions in use; only a dynamic scaling reads it.

        Returns:
            Frequencies in radians a position.
        """

    @property
    def cos_sin_factor(self) -> float:
        """What cos and sin are multiplied with, 1 unless the scaling says otherwise."""
        return 1.0


@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    r"""Position interpolation: every position is divided by the factor.

    .. math:: \omega_i' = \omega_i / s

    Attributes:
        factor: :math:`s \ge 1`.

    References:
        S. Chen et al., "Extending context window of large language models via positional
        interpolation", arXiv:2306.15595, eq. 4.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> rope_frequencies(4, scaling=LinearScaling(2.0), dtype=torch.float64)
        tensor([0.5000, 0.0050], dtype=torch.float64)
    """

    def frequencies(
        self, plain: Float[Tensor, " pairs"], *, base: float, length: int | Tensor | None = None
    ) -> Float[Tensor, " pairs"]:
        """Divide by the factor."""
        return plain / self.factor


@dataclass(frozen=True)
class NTKScaling(RopeScaling):
    r"""NTK-aware scaling: a larger base, which leaves the fastest pair as it is.

    .. math:: b' = b\,s^{d/(d-2)}, \qquad \omega_i' = \omega_i\,s^{-2i/(d-2)}

    The fastest pair (:math:`i = 0`) keeps its speed, and the slowest (:math:`i = d/2 - 1`) is
    slowed by exactly :math:`s`, as by :class:`LinearScaling`. It needs ``head_dim`` of 4 or more.

    Attributes:
        factor: :math:`s \ge 1`.

    References:
        Proposed by the user bloc97 on Reddit in 2023; B. Peng et al., "YaRN", arXiv:2309.00071,
        section 3.1.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> rope_frequencies(4, scaling=NTKScaling(2.0), dtype=torch.float64)
        tensor([1.0000, 0.0050], dtype=torch.float64)
    """

    def frequencies(
        self, plain: Float[Tensor, " pairs"], *, base: float, length: int | Tensor | None = None
    ) -> Float[Tensor, " pairs"]:
        """Make the frequencies again with the larger base."""
        dim = _wide_enough(plain)
        return _plain(dim, base * self.factor ** (dim / (dim - 2)), plain)


@dataclass(frozen=True)
class DynamicNTKScaling(RopeScaling):
    r"""NTK-aware scaling whose strength follows the length of the text at hand.

    .. math:: b' = b\left(\frac{s\,n}{n_0} - (s - 1)\right)^{d/(d-2)}, \qquad n > n_0

    Up to the trained context :math:`n_0` nothing changes. The length :math:`n` is the largest
    position of the call plus one. Note a limit of the method: keys that a cache holds were turned
    with the frequencies of their own time.

    Attributes:
        factor: :math:`s \ge 1`.
        context: :math:`n_0`, the context that the model was trained with.

    References:
        Proposed by the user emozilla on Reddit in 2023; arXiv:2309.00071, section 3.3.

    Book: :doc:`/book/transformer/positions`
    """

    context: int
    dynamic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("context", self.context)

    def frequencies(
        self, plain: Float[Tensor, " pairs"], *, base: float, length: int | Tensor | None = None
    ) -> Float[Tensor, " pairs"]:
        """Make the frequencies again with a base for this length."""
        dim = _wide_enough(plain)
        used = self.context if length is None else length
        if isinstance(used, Tensor):  # stays on its device: no wait for the value
            used = used.clamp(min=self.context).to(plain.dtype)
        else:
            used = max(used, self.context)
        stretch = self.factor * used / self.context - (self.factor - 1)
        return _plain(dim, base * stretch ** (dim / (dim - 2)), plain)


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    r"""The scaling of Llama 3.1: only slow pairs are slowed, with a smooth passage.

    With the wavelength :math:`\lambda_i = 2\pi/\omega_i` and the number of turns within the
    trained context :math:`r_i = n_0/\lambda_i`:

    .. math:: \omega_i' = (1 - \gamma_i)\frac{\omega_i}{s} + \gamma_i\,\omega_i, \qquad
        \gamma_i = \min\left(1, \max\left(0, \frac{r_i - l}{h - l}\right)\right)

    Attributes:
        factor: :math:`s \ge 1`.
        low: :math:`l`; pairs with fewer turns are slowed by the whole factor.
        high: :math:`h > l`; pairs with more turns stay as they are.
        context: :math:`n_0`, the context that the model was trained with.

    References:
        A. Grattafiori et al., "The Llama 3 herd of models", arXiv:2407.21783; the rule is in
        the published code, ``transformers`` calls it ``llama3``.

    Book: :doc:`/book/transformer/positions`
    """

    low: float
    high: float
    context: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("context", self.context)
        if not 0 < self.low < self.high:
            raise ValueError(
                f"low and high must satisfy 0 < low < high, got {self.low} and {self.high}"
            )

    def frequencies(
        self, plain: Float[Tensor, " pairs"], *, base: float, length: int | Tensor | None = None
    ) -> Float[Tensor, " pairs"]:
        """Slow the pairs that turn less than ``high`` times."""
        turns = self.context / (2 * math.pi / plain)
        keep = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        return (1 - keep) * plain / self.factor + keep * plain


@dataclass(frozen=True)
class YarnScaling(RopeScaling):
    r"""YaRN: a ramp over the pairs, and slightly sharper attention.

    .. math:: \omega_i' = \gamma_i\,\omega_i + (1 - \gamma_i)\frac{\omega_i}{s}, \qquad
        \gamma_i = 1 - \min\left(1, \max\left(0, \frac{i - i_{\mathrm{fast}}}
        {i_{\mathrm{slow}} - i_{\mathrm{fast}}}\right)\right)

    where :math:`i_\beta = \frac{d}{2}\log_b\frac{n_0}{2\pi\beta}` is the pair that turns
    :math:`\beta` times within the trained context, rounded outwards. Cos and sin are multiplied
    with :math:`\frac{1}{10}\ln s + 1`, so the scores are multiplied with its square.

    Attributes:
        factor: :math:`s \ge 1`.
        context: :math:`n_0`, the context that the model was trained with.
        beta_fast: Pairs with more turns than this keep their speed.
        beta_slow: Pairs with fewer turns are slowed by the whole factor.
        attention_factor: What cos and sin are multiplied with; ``None`` means
            :math:`\frac{1}{10}\ln s + 1`, or what the next two say.
        mscale: With ``mscale_all_dim``, the factor is
            :math:`(\frac{\mu}{10}\ln s + 1)/(\frac{\mu'}{10}\ln s + 1)` for the two of them.
        mscale_all_dim: :math:`\mu'`, as above; DeepSeek's models set both.
        truncate: Whether the ends of the ramp are rounded to whole pairs.

    References:
        B. Peng et al., "YaRN: efficient context window extension of large language models",
        arXiv:2309.00071, sections 3.2 and 3.4. The paper ramps over the number of turns; the
        published code, and this one, over the index of the pair.

    Book: :doc:`/book/transformer/positions`
    """

    context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("context", self.context)
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(
                f"beta_slow and beta_fast must satisfy 0 < beta_slow < beta_fast, "
                f"got {self.beta_slow} and {self.beta_fast}"
            )
        if self.attention_factor is not None:
            check_in_range("attention_factor", self.attention_factor, low=0.0, open_low=True)

    @property
    def cos_sin_factor(self) -> float:
        """The attention factor."""
        if self.attention_factor is not None:
            return self.attention_factor
        slope = 0.1 * math.log(self.factor)
        if self.mscale and self.mscale_all_dim:
            return (slope * self.mscale + 1.0) / (slope * self.mscale_all_dim + 1.0)
        return slope + 1.0

    def frequencies(
        self, plain: Float[Tensor, " pairs"], *, base: float, length: int | Tensor | None = None
    ) -> Float[Tensor, " pairs"]:
        """Slow the pairs beyond the ramp, and those on it in part."""
        dim = 2 * len(plain)

        def pair(turns: float) -> float:
            return dim * math.log(self.context / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # The upper end is dim - 1 and not the number of pairs, as in the published code.
        first, last = max(first, 0), min(last, dim - 1)
        width = last - first if last != first else 0.001
        index = torch.arange(len(plain), device=plain.device).to(plain.dtype)
        ramp = ((index - first) / width).clamp(0.0, 1.0)
        return plain / self.factor * ramp + plain * (1 - ramp)


def _wide_enough(plain: Tensor) -> int:
    if len(plain) < 2:
        raise ValueError("NTK-aware scaling needs a head_dim of 4 or more, got 2")
    return 2 * len(plain)


def rope_frequencies(
    head_dim: int,
    *,
    base: float = 10000.0,
    scaling: RopeScaling | None = None,
    length: int | Tensor | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " pairs"]:
    r"""Return the angle by which each pair of coordinates turns from one position to the next.

    .. math:: \omega_i = b^{-2i/d}, \qquad i = 0, \dots, d/2 - 1

    Args:
        head_dim: :math:`d`, even.
        base: :math:`b > 1`.
        scaling: ``None``, or how the frequencies are changed for longer texts.
        length: Number of positions in use; only :class:`DynamicNTKScaling` reads it.
        device: Where to make them.
        dtype: float32, as in all published models, or float64.

    Returns:
        Frequencies in radians a position, in (0, 1], fastest first.

    Raises:
        ValueError: If ``head_dim`` is odd, or the base is not above 1.

    References:
        J. Su et al., "RoFormer", arXiv:2104.09864, eq. 15.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> rope_frequencies(4, dtype=torch.float64)
        tensor([1.0000, 0.0100], dtype=torch.float64)
    """
    check_even("head_dim", head_dim)
    check_in_range("base", base, low=1.0, open_low=True)
    plain = _plain(head_dim, base, torch.empty(0, device=device, dtype=dtype))
    if scaling is None:
        return plain
    return scaling.frequencies(plain, base=base, length=length)
