"""Dropout: masks that can be drawn again, on any device and inside a compiled graph."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from companion.core import check_floating, check_in_range, check_shape

__all__ = [
    "Dropout",
    "dropout",
    "dropout_mask",
    "enumerate_masks",
    "hashed_mask",
    "mc_dropout",
]

_LOW_32 = 0xFFFFFFFF


def dropout_mask(
    size: Sequence[int],
    *,
    p: float,
    generator: torch.Generator,
    device: str | torch.device | None = None,
) -> Bool[Tensor, "..."]:
    r"""Draw which entries are kept.

    .. math:: m_j \sim \mathrm{Bernoulli}(1 - p), \quad \text{independent}

    Args:
        size: The shape. An axis of size 1 shares its mask when the mask is broadcast.
        p: Probability to drop, in [0, 1].
        generator: The source of randomness.
        device: Where the mask is moved; by default it stays with the generator.

    Returns:
        ``True`` where an entry is kept. With ``p=0`` all are, with ``p=1`` none.

    Raises:
        ValueError: If ``p`` lies outside [0, 1].

    Numerics:
        Drawn in float64, so the probability is met up to :math:`2^{-53}`, and the mask does not
        depend on the precision in which the model computes. A device without float64 (MPS)
        cannot draw: pass a CPU generator. A ``torch.Generator`` cannot enter a graph of
        ``torch.compile``: draw the mask outside and pass it to :func:`dropout`, or use
        :class:`Dropout`.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> dropout_mask((2, 3), p=0.5, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    check_in_range("p", p, low=0.0, high=1.0)
    drawn = torch.rand(
        tuple(size), generator=generator, device=generator.device, dtype=torch.float64
    )
    mask = drawn >= p
    return mask if device is None else mask.to(device)


def dropout(
    x: Float[Tensor, "*shape"],
    *,
    p: float,
    generator: torch.Generator | None = None,
    mask: Bool[Tensor, "..."] | None = None,
    training: bool = True,
) -> Float[Tensor, "*shape"]:
    r"""Drop entries at random, and scale up the rest.

    .. math:: \tilde x = \frac{m \odot x}{1 - p}

    The mean is :math:`x`, the variance of an entry :math:`\frac{p}{1 - p} x_j^2`.

    Args:
        x: Activations.
        p: Probability to drop, in [0, 1].
        generator: Draws a mask of the shape of ``x``.
        mask: A mask drawn before, ``True`` where kept, broadcast against ``x``. Give this or
            ``generator``, not both.
        training: ``False`` returns ``x`` itself: with the scaling inside the training there is
            nothing to correct at test time.

    Returns:
        The shape, dtype and device of ``x``. With ``p=0`` it is ``x`` itself; with ``p=1`` all
        entries are 0 (the limit of the formula has no finite variance), and so is the gradient.

    Raises:
        ValueError: If ``p`` lies outside [0, 1], ``x`` is not floating, the mask is not boolean
            or does not broadcast to ``x``, or there is not exactly one source of a mask where one
            is needed.

    Numerics:
        A dropped entry is 0 even where ``x`` is infinite or NaN, and passes no gradient.
        ``torch.compile(fullgraph=True)`` takes the form with ``mask``.

    References:
        N. Srivastava et al., "Dropout: a simple way to prevent neural networks from
        overfitting", JMLR 15, 2014. There :math:`p` is the probability to keep, and the scaling
        is done at test time (their section 10 mentions the form used here).

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> dropout(torch.ones(3), p=0.75, mask=torch.tensor([True, False, True]))
        tensor([4., 0., 4.])
    """
    check_in_range("p", p, low=0.0, high=1.0)
    check_floating("x", x)
    if not training or p == 0:
        return x
    if (generator is None) == (mask is None):
        raise ValueError("give a generator or a mask, and not both")
    if generator is not None:
        mask = dropout_mask(x.shape, p=p, generator=generator, device=x.device)
    assert mask is not None
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, True where kept, got {mask.dtype}")
    _check_broadcast(tuple(mask.shape), tuple(x.shape))
    scale = 1 / (1 - p) if p < 1 else 0.0
    return torch.where(mask, x * scale, torch.zeros((), dtype=x.dtype, device=x.device))


def _check_broadcast(mask: tuple[int, ...], shape: tuple[int, ...]) -> None:
    pairs = zip(reversed(mask), reversed(shape), strict=False)
    if len(mask) > len(shape) or any(m not in (1, s) for m, s in pairs):
        raise ValueError(f"a mask of shape {mask} does not broadcast to x of shape {shape}")


def _mix(x: Tensor) -> Tensor:
    # A bijection of 32-bit integers in which every input bit flips every output bit about half of
    # the time. Both factors are below 2**31, so no product leaves int64, in any backend.
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _LOW_32
    x = (x ^ (x >> 15)) * 0x735A2D97 & _LOW_32
    return x ^ (x >> 15)


def hashed_mask(size: Sequence[int], *, p: float, key: Int[Tensor, " 3"]) -> Bool[Tensor, "..."]:
    r"""Compute which entries are kept from a key, by integer arithmetic alone.

    Entry :math:`j` is kept if :math:`h_{\mathrm{key}}(j) \ge 2^{32} p` for a hash :math:`h` with 32
    bits. There is no hidden state: equal keys give equal masks, on every device, in eager mode and
    in a compiled graph.

    Args:
        size: The shape.
        p: Probability to drop, in [0, 1].
        key: Two seeds and a counter, int64, each in [0, 2**32).

    Returns:
        ``True`` where an entry is kept, on the device of the key.

    Raises:
        ValueError: If ``p`` lies outside [0, 1] or the key is not three int64 numbers.

    Numerics:
        A statistical hash, good enough for noise and not for secrets. The probability is met up
        to :math:`2^{-33}`. Under ``torch.compile`` it fuses into what uses the mask, and no mask
        is stored; in eager mode it takes a few int64 tensors of the shape.

    References:
        The mixing function is one of those found by search in C. Wellons's project
        *hash-prospector*; counter-based streams: J. K. Salmon et al.,
        doi:10.1145/2063384.2063405.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> bool(hashed_mask((5,), p=0.0, key=torch.tensor([1, 2, 3])).all())
        True
    """
    check_in_range("p", p, low=0.0, high=1.0)
    check_shape("key", key, (3,))
    if key.dtype != torch.int64:
        raise ValueError(f"key must be int64, got {key.dtype}")
    count = 1
    for extent in size:
        count *= extent
    # Two keys, before and between the rounds: with one alone, the masks of two keys that differ
    # in their low bits would be permutations of each other.
    first = _mix(key[0] ^ _mix(key[2]))
    second = _mix(key[1] + first & _LOW_32)
    index = torch.arange(count, device=key.device)
    bits = _mix((_mix(index & _LOW_32 ^ first) + second + (index >> 32)) & _LOW_32)
    return (bits >= round(p * 2**32)).reshape(tuple(size))


class Dropout(nn.Module):
    r"""Drop activations while training, and do nothing else.

    .. math:: \tilde x = \frac{m \odot x}{1 - p} \text{ in training}, \qquad
        \tilde x = x \text{ in evaluation}

    At its making the module takes two seeds from the generator. They and a counter of calls are
    its ``state``, an int64 buffer, from which :func:`hashed_mask` makes the mask of each call. So
    a run is repeated by repeating the seed, eager and compiled models drop the same entries, and
    ``torch.compile(fullgraph=True)`` sees plain tensor arithmetic.

    Args:
        p: Probability to drop, in [0, 1].
        generator: The source of the two seeds. Several modules may share it.

    Attributes:
        state: Two seeds and the number of calls in training, shape ``(3,)``. It is not part of
            ``state_dict()``, so that weights from elsewhere load strictly; to resume a run in the
            middle, save it and copy it back.

    Raises:
        ValueError: If ``p`` lies outside [0, 1].

    Numerics:
        What is computed twice draws twice: under activation checkpointing the second pass sees
        another mask, so keep dropout out of checkpointed parts or reset ``state``. Works under
        autocast, in the dtype that arrives.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> layer = Dropout(0.5, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(layer.eval()(torch.ones(3)), torch.ones(3))
        True
    """

    state: Tensor

    def __init__(self, p: float, *, generator: torch.Generator) -> None:
        check_in_range("p", p, low=0.0, high=1.0)
        super().__init__()
        self.p = p
        seeds = torch.randint(0, 2**32, (2,), generator=generator, device=generator.device)
        device = torch.get_default_device()
        state = torch.cat([seeds, seeds.new_zeros(1)]).to(device)
        self.register_buffer("state", state, persistent=False)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the activations with some of them dropped, or as they are in evaluation.

        Args:
            x: Activations on the device of the module.

        Returns:
            The shape and dtype of ``x``.
        """
        if not self.training or self.p == 0:
            return x
        mask = hashed_mask(x.shape, p=self.p, key=self.state)
        # A new tensor, not an in-place sum: a graph that is captured holds the old one.
        self.state = torch.stack([self.state[0], self.state[1], self.state[2] + 1 & _LOW_32])
        return dropout(x, p=self.p, mask=mask)

    def extra_repr(self) -> str:
        """Return what is shown between the parentheses of the module."""
        return f"p={self.p}"


def enumerate_masks(
    units: int, *, p: float, device: str | torch.device | None = None
) -> tuple[Bool[Tensor, "masks units"], Float[Tensor, " masks"]]:
    r"""Return all masks of a few units, and the probability of each.

    An expectation over dropout is then a finite sum, exact and without chance.

    Args:
        units: Number :math:`d` of units, 1 to 20.
        p: Probability to drop, in [0, 1].
        device: Where the tensors are made, by default PyTorch's default device.

    Returns:
        :math:`2^d` masks, ``True`` where kept, and their probabilities
        :math:`p^{\#\text{dropped}} (1 - p)^{\#\text{kept}}` in float64, which sum to one.

    Raises:
        ValueError: If ``units`` or ``p`` is out of its domain.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> masks, probability = enumerate_masks(2, p=0.25)
        >>> probability
        tensor([0.0625, 0.1875, 0.1875, 0.5625], dtype=torch.float64)
    """
    check_in_range("p", p, low=0.0, high=1.0)
    if not 1 <= units <= 20:
        raise ValueError(f"units must lie in [1, 20], since there are 2**units masks, got {units}")
    codes = torch.arange(2**units, device=device).unsqueeze(1)
    masks = (codes >> torch.arange(units, device=device)) & 1 == 1
    kept = masks.sum(1).double()
    return masks, (1 - p) ** kept * p ** (units - kept)


def mc_dropout(
    model: Callable[[Tensor], Tensor], x: Tensor, *, samples: int
) -> Float[Tensor, "samples ..."]:
    r"""Run a model several times with dropout switched on.

    Everything else stays as it is: only modules of the types :class:`Dropout` and
    ``torch.nn.Dropout`` are put into training mode, and back afterwards.

    Args:
        model: An ``nn.Module`` with at least one such module.
        x: A batch of inputs.
        samples: Number :math:`S` of passes, 1 or more.

    Returns:
        The outputs, ``(S, *output)``. The Monte Carlo prediction of a classifier is the mean over
        the first axis of the *probabilities*, not of the logits.

    Raises:
        ValueError: If ``samples`` is below 1 or the model has no dropout.

    Numerics:
        S passes. Gradients flow; put the call under ``torch.no_grad()`` if they are not needed.

    References:
        Y. Gal and Z. Ghahramani, arXiv:1506.02142, who read the spread as uncertainty.

    Book: :doc:`/book/foundations/regularization`

    Example:
        >>> layer = Dropout(0.5, generator=torch.Generator().manual_seed(0)).eval()
        >>> mc_dropout(layer, torch.ones(2, 3), samples=7).shape
        torch.Size([7, 2, 3])
    """
    if samples < 1:
        raise ValueError(f"samples must be 1 or more, got {samples}")
    modules = model.modules() if isinstance(model, nn.Module) else ()
    layers = [m for m in modules if isinstance(m, Dropout | nn.Dropout)]
    if not layers:
        raise ValueError("the model has no Dropout module, so all its passes would be equal")
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.train()
        return torch.stack([model(x) for _ in range(samples)])
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)
