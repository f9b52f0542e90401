"""Rotary positions: queries and keys are turned, and their products know only the distance."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import check_count, check_ids, wide_dtype
from companion.transformer.positions._checks import check_even, check_positions
from companion.transformer.positions._frequencies import RopeScaling, rope_frequencies

__all__ = ["Rotary", "interleave_pairs", "rotate", "rotation_matrix"]


class Rotary(nn.Module):
    r"""Turn positions into the cosines and sines by which :func:`rotate` turns queries and keys.

    The pair :math:`i` of coordinates turns by the angle :math:`m\omega_i` at position :math:`m`.
    A rotation of the pair :math:`(a, b)` is :math:`(a\cos - b\sin,\; b\cos + a\sin)`: each
    coordinate times a cosine, plus its partner times a signed sine. Cosine and sine are
    therefore given at full width, and the minus sign sits in the sine already, because the first
    of each pair is given the angle :math:`-m\omega_i`, of the same cosine.

    Args:
        head_dim: Width :math:`d` of a head, even.
        base: :math:`b > 1`.
        scaling: ``None``, or how the frequencies are changed for longer texts.
        interleaved: ``True`` pairs neighbors, coordinates :math:`2i` and :math:`2i+1`, as in the
            paper. ``False`` pairs :math:`i` and :math:`i + d/2`, as in checkpoints of Llama in the
            Hugging Face layout.
        context: If given, positions from here on are refused.

    Attributes:
        frequencies: Signed frequencies in radians a position, ``(head_dim,)``, always float32. It
            is a buffer that is not saved; it follows the module to another device, and
            stays float32 when the module's dtype changes.

    Numerics:
        The angles are formed in float32, as in the published models, in float64 where that is the
        dtype asked for.

    References:
        J. Su et al., "RoFormer: enhanced transformer with rotary position embedding",
        arXiv:2104.09864, eqs. 15 and 34.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> cos, sin = Rotary(2)(torch.tensor([0, 1]), dtype=torch.float64)
        >>> sin
        tensor([[-0.0000,  0.0000],
                [-0.8415,  0.8415]], dtype=torch.float64)
    """

    frequencies: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10000.0,
        scaling: RopeScaling | None = None,
        interleaved: bool = False,
        context: int | None = None,
    ) -> None:
        super().__init__()
        check_even("head_dim", head_dim)
        if context is not None:
            check_count("context", context)
        self.head_dim = head_dim
        self.base = float(base)
        self.scaling = scaling
        self.interleaved = interleaved
        self.context = context
        self.register_buffer("frequencies", self._signed(None), persistent=False)

    def _signed(
        self,
        device: torch.device | None,
        length: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        plain = rope_frequencies(
            self.head_dim,
            base=self.base,
            scaling=self.scaling,
            length=length,
            device=device,
            dtype=dtype,
        )
        if self.interleaved:
            return torch.stack((-plain, plain), -1).flatten()
        return torch.cat((-plain, plain))

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # A module that is moved to bfloat16, or out of meta, must keep its frequencies.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.frequencies = self._signed(self.frequencies.device)
        return self

    def forward(
        self,
        positions: Integer[Tensor, " n"] | Integer[Tensor, "batch n"],
        *,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the cosines and the signed sines of all angles.

        Args:
            positions: Positions, shape ``(n,)`` or ``(batch, n)``.
            dtype: Dtype of the result; float32 by default.

        Returns:
            Two tensors of shape ``(n, head_dim)`` or ``(batch, n, head_dim)``, entries in
            [-1, 1] times the scaling's factor.

        Raises:
            ValueError: If the positions are not integers, have another shape, or reach ``context``.
        """
        check_positions("positions", positions)
        if self.context is not None:
            check_ids("positions", positions, self.context)
        dtype = dtype or torch.float32
        wide = wide_dtype(dtype)
        frequencies = self.frequencies
        if wide != torch.float32 or (self.scaling is not None and self.scaling.dynamic):
            frequencies = self._signed(positions.device, positions.max().long() + 1, wide)
        elif frequencies.device != positions.device:
            # Made under torch.device("meta") and filled by load_state_dict(assign=True).
            frequencies = self._signed(positions.device)
            if not torch.compiler.is_compiling():
                self.frequencies = frequencies
        angles = positions[..., None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        factor = 1.0 if self.scaling is None else self.scaling.cos_sin_factor
        if factor != 1.0:
            cos, sin = cos * factor, sin * factor
        return cos.to(dtype), sin.to(dtype)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        scaled = "" if self.scaling is None else f", scaling={self.scaling}"
        layout = ", interleaved=True" if self.interleaved else ""
        return f"head_dim={self.head_dim}, base={self.base:g}{scaled}{layout}"


def rotate(
    x: Float[Tensor, "*batch a b head_dim"],
    rotation: tuple[Tensor, Tensor],
    *,
    interleaved: bool = False,
    head_axis: int | None = 1,
) -> Float[Tensor, "*batch a b head_dim"]:
    r"""Turn queries or keys by their positions.

    .. math:: \tilde q_m = q_m R_m = q_m \odot \cos + \mathrm{swap}(q_m) \odot \sin

    where swap exchanges the two coordinates of every pair, and the sine carries its sign.

    Args:
        x: Queries or keys, ``(batch, heads, n, head_dim)`` or ``(batch, n, heads, head_dim)``;
            without a batch ``(heads, n, head_dim)`` or ``(n, heads, head_dim)``; and
            ``(batch, n, head_dim)`` for one head without an axis.
        rotation: What :class:`Rotary` returned for the ``n`` positions. Note the signed sine.
        interleaved: Which coordinates form a pair; as in :class:`Rotary`.
        head_axis: Which axis of ``x`` the heads are: 1 or 2 of four axes, 0 or 1 of three, or as
            well -3 or -2 of either; ``None`` where three axes hold no heads.

    Returns:
        The turned vectors, of the dtype of ``x`` and, for a scaling without factor, of the same
        lengths.

    Raises:
        ValueError: If the shapes do not fit.

    Numerics:
        Three kernels, the last of which works in place. Where cosine and sine are wider than
        ``x``, the arithmetic is theirs and the result is rounded once.

    References:
        arXiv:2104.09864, eq. 34.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> angles = Rotary(2)(torch.tensor([0, 1]))
        >>> rotate(torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]), angles)
        tensor([[[[1.0000, 0.0000],
                  [0.5403, 0.8415]]]])
    """
    cos, sin = rotation
    shape, angles = x.shape, cos.shape
    if len(shape) == 3 or head_axis not in (1, 2):
        return _rotate_other(x, rotation, interleaved, head_axis)
    # The decode loop passes here once a layer, so this looks at shapes only, and at few of them.
    if (
        len(shape) != 4
        or angles != sin.shape
        or angles[-2:] != (shape[3 - head_axis], shape[3])
        or not (len(angles) == 2 or (len(angles) == 3 and angles[0] in (1, shape[0])))
    ):
        raise ValueError(_misfit(x, cos, sin, head_axis))
    if head_axis == 2:
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    elif len(angles) == 3:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        swapped = x.reshape(*shape[:3], -1, 2).flip(-1).flatten(-2)
    else:
        swapped = x.roll(shape[3] // 2, -1)
    turned = (x * cos).addcmul_(swapped, sin)
    return turned if turned.dtype == x.dtype else turned.to(x.dtype)


def _rotate_other(
    x: Tensor, rotation: tuple[Tensor, Tensor], interleaved: bool, head_axis: int | None
) -> Tensor:
    """Three axes, and axes counted from the end."""
    extra = 4 - x.ndim
    if head_axis is None:
        place, heads = (1, 1) if extra == 1 else (0, 0)
    else:  # axis 0 of three is axis 1 of four
        place, heads = 0, head_axis + 4 if head_axis < 0 else head_axis + extra
    if extra not in (0, 1) or heads not in (1, 2):
        raise ValueError(
            f"x must have four axes with the heads on axis 1 or 2, or three with the heads on 0 or "
            f"1 or none, got shape {tuple(x.shape)} and head_axis {head_axis}"
        )
    if extra == 0:
        return rotate(x, rotation, interleaved=interleaved, head_axis=heads)
    turned = rotate(x.unsqueeze(place), rotation, interleaved=interleaved, head_axis=heads)
    return turned.squeeze(place)


def _misfit(x: Tensor, cos: Tensor, sin: Tensor, head_axis: int) -> str:
    if x.ndim != 4:
        return f"x must have three or four axes, got {tuple(x.shape)}"
    n, d = x.shape[3 - head_axis], x.shape[3]
    return (
        f"x of shape {tuple(x.shape)} with heads on axis {head_axis} needs cos and sin of shape "
        f"({n}, {d}) or ({x.shape[0]}, {n}, {d}), got {tuple(cos.shape)} and {tuple(sin.shape)}"
    )


def rotation_matrix(
    position: int,
    head_dim: int,
    *,
    base: float = 10000.0,
    scaling: RopeScaling | None = None,
    interleaved: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Float[Tensor, "head_dim head_dim"]:
    r"""Return the rotation of one position as a dense matrix: the readable definition.

    .. math:: \tilde q_m = q_m R_m, \qquad R_m = \mathrm{diag}_i
        \begin{pmatrix} \cos m\omega_i & \sin m\omega_i \\
        -\sin m\omega_i & \cos m\omega_i \end{pmatrix}

    Args:
        position: :math:`m`, of any sign.
        head_dim: :math:`d`, even.
        base: :math:`b > 1`.
        scaling: ``None``, or how the frequencies are changed; its factor on cos and sin is left
            out, so the matrix is orthogonal.
        interleaved: Whether a block acts on neighbors, or on coordinates :math:`i` and
            :math:`i + d/2`.
        dtype: Dtype of the result; by default PyTorch's default dtype.
        device: Where to make it.

    Returns:
        An orthogonal matrix with :math:`R_m R_n^\top = R_{m-n}`.

    Raises:
        ValueError: If ``head_dim`` is odd or the base is not above 1.

    References:
        arXiv:2104.09864, eq. 15, transposed: there vectors are columns.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> R = rotation_matrix(3, 4, dtype=torch.float64)
        >>> torch.allclose(R @ R.T, torch.eye(4, dtype=torch.float64))
        True
    """
    dtype = dtype or torch.get_default_dtype()
    wide = wide_dtype(dtype)
    angles = position * rope_frequencies(
        head_dim, base=base, scaling=scaling, length=abs(position) + 1, device=device, dtype=wide
    )
    cos, sin = angles.cos(), angles.sin()
    index = torch.arange(head_dim // 2, device=device)
    first, second = (2 * index, 2 * index + 1) if interleaved else (index, index + head_dim // 2)
    matrix = torch.zeros(head_dim, head_dim, device=device, dtype=wide)
    matrix[first, first], matrix[first, second] = cos, sin
    matrix[second, first], matrix[second, second] = -sin, cos
    return matrix.to(dtype)


def interleave_pairs(
    x: Float[Tensor, "... head_dim"], *, inverse: bool = False
) -> Float[Tensor, "... head_dim"]:
    r"""Reorder coordinates from the half-split layout to the interleaved one.

    .. math:: y_{2i} = x_i, \qquad y_{2i+1} = x_{i + d/2}

    Args:
        x: Anything whose last axis is a head in half-split layout, for example
            ``query_matrix`` of ``companion.transformer.multi_head.MultiHeadAttention``.
        inverse: Go the other way.

    Returns:
        A copy in the other layout.

    Raises:
        ValueError: If the last axis is odd.

    Book: :doc:`/book/transformer/positions`

    Example:
        >>> interleave_pairs(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        tensor([0., 2., 1., 3.])
    """
    check_even("head_dim", x.shape[-1])
    shape = (-1, 2) if inverse else (2, -1)
    return x.reshape(*x.shape[:-1], *shape).transpose(-1, -2).flatten(-2)
