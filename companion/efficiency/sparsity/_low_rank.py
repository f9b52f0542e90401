r"""Matrices with structure: of low rank, of low rank in blocks, block-diagonal twice.

In the functions here a weight is the book's :math:`W` of shape :math:`(d_{in}, d_{out})`, which
acts as :math:`X W`. Modules have it as ``weight`` in the layout of :class:`torch.nn.Linear`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import LinearLike, check_count, check_in_range, check_shape, rand, wide

__all__ = [
    "BlockLowRankLinear",
    "LowRankLinear",
    "MonarchLinear",
    "activation_aware_factors",
    "break_even_rank",
    "svd_factors",
]


def break_even_rank(d_in: int, d_out: int) -> int:
    r"""Compute the largest rank at which two factors hold no more numbers than the matrix.

    .. math:: r\,(d_{in}+d_{out}) \le d_{in} d_{out}

    Args:
        d_in: Inputs.
        d_out: Outputs.

    Returns:
        :math:`\lfloor d_{in}d_{out}/(d_{in}+d_{out})\rfloor`.

    Raises:
        ValueError: If a size is below 1.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> break_even_rank(512, 1000)
        338
    """
    check_count("d_in", d_in)
    check_count("d_out", d_out)
    return d_in * d_out // (d_in + d_out)


def svd_factors(
    W: Float[Tensor, "d_in d_out"], *, rank: int
) -> tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]:
    r"""Compute the factors of the best approximation of low rank.

    .. math:: \min_{A, B}\ \lVert W - A B\rVert_F^2 = \sum_{i > r} \sigma_i^2

    Args:
        W: The matrix.
        rank: :math:`r`, from 1 to the smaller side.

    Returns:
        :math:`A` and :math:`B`, each with a root of the singular values.

    Raises:
        ValueError: If the rank is out of range.

    Numerics:
        In float32 at least; the factors have the dtype of ``W``.

    References:
        Eckart and Young 1936, "The approximation of one matrix by another of lower rank".

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> A, B = svd_factors(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), rank=1)
        >>> (A @ B).abs()
        tensor([[3., 0.],
                [0., 0.]])
    """
    check_shape("W", W, (None, None))
    check_count("rank", rank, high=min(W.shape))
    left, values, right = torch.linalg.svd(wide(W), full_matrices=False)
    root = values[:rank].sqrt()
    A, B = left[:, :rank] * root, root[:, None] * right[:rank]
    return A.to(W.dtype), B.to(W.dtype)


def activation_aware_factors(
    W: Float[Tensor, "d_in d_out"],
    H: Float[Tensor, "d_in d_in"],
    *,
    rank: int,
    damping: float = 1e-4,
) -> tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]:
    r"""Compute the factors that change the outputs on given inputs least.

    .. math:: \min_{A, B}\ \lVert X (W - A B)\rVert_F^2, \qquad X^\top X = \tfrac12 H = S S^\top

    It is the plain problem for :math:`S^\top W`, so :math:`A = S^{-\top} A'`.

    Args:
        W: The matrix.
        H: :math:`2 X^\top X`, from :func:`input_hessian`.
        rank: :math:`r`.
        damping: What is added to the diagonal of ``H``, as a share of its mean.

    Returns:
        :math:`A` and :math:`B`.

    Raises:
        ValueError: If shapes do not fit, the rank or the damping is out of range, or ``H`` is
            singular and there is no damping.

    Numerics:
        In float64; the result has the dtype of ``W``.

    References:
        Wang et al. 2024, arXiv:2403.07378, sec. 3.1 (SVD-LLM).

    Book: :doc:`/book/efficiency/sparsity`
    """
    check_shape("W", W, (None, None))
    check_shape("H", H, (W.shape[0], W.shape[0]))
    check_in_range("damping", damping, low=0.0, open_high=True)
    gram = H.double() / 2
    gram = gram + damping * gram.diagonal().mean() * torch.eye(
        len(H), device=H.device, dtype=torch.float64
    )
    S, info = torch.linalg.cholesky_ex(gram)
    if H.device.type != "meta" and int(info):
        raise ValueError(f"H is not positive definite with damping {damping}: give more damping")
    A, B = svd_factors(S.T @ W.double(), rank=rank)
    A = torch.linalg.solve_triangular(S.T, A, upper=True)
    return A.to(W.dtype), B.to(W.dtype)


class LowRankLinear(LinearLike):
    r"""A linear layer whose matrix is a product of two factors, which is never formed.

    .. math:: Y = (X A)\,B + b

    Args:
        A: (d_in, rank), copied.
        B: (rank, d_out), copied.
        bias: (d_out), copied; none by default.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        :math:`2r(d_{in}+d_{out})` FLOPs a row in place of :math:`2d_{in}d_{out}`.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> layer = LowRankLinear(*svd_factors(torch.eye(3), rank=2))
        >>> layer(torch.ones(5, 3)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([5, 3]), 12)
    """

    def __init__(
        self,
        A: Float[Tensor, "d_in rank"],
        B: Float[Tensor, "rank d_out"],
        bias: Float[Tensor, " d_out"] | None = None,
    ) -> None:
        super().__init__()
        check_shape("A", A, (None, None))
        check_shape("B", B, (A.shape[1], None))
        if bias is not None:
            check_shape("bias", bias, (B.shape[1],))
        self.A = nn.Parameter(A.detach().clone())
        self.B = nn.Parameter(B.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Apply the two factors."""
        y = x @ self.A @ self.B
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:  # type: ignore[override]
        """The product, formed, in the layout of ``nn.Linear``."""
        return (self.A @ self.B).T

    def extra_repr(self) -> str:
        """Show the sizes in ``repr``."""
        return f"in={self.A.shape[0]}, rank={self.A.shape[1]}, out={self.B.shape[1]}"


class BlockLowRankLinear(LinearLike):
    r"""A linear layer whose matrix is a grid of blocks, each of low rank and none of them zero.

    .. math:: W = [U_{ij} V_{ij}]_{ij}, \qquad
        \text{numbers} = b^2\,r\Big(\frac{d_{in}}b + \frac{d_{out}}b\Big) = b\,r\,(d_{in}+d_{out})

    Args:
        d_in: Inputs, a multiple of ``blocks``.
        d_out: Outputs, likewise.
        blocks: :math:`b` blocks along each side.
        rank: :math:`r` of each block.
        generator: Draws the factors.
        device: Where the parameters are made.
        dtype: Their dtype.

    Attributes:
        U: (blocks, blocks, d_in / blocks, rank).
        V: (blocks, blocks, rank, d_out / blocks).

    Raises:
        ValueError: If the sizes do not fit.

    Numerics:
        The whole matrix may have a rank of up to :math:`\min(d_{in}, d_{out}, b^2 r)`. Compare a
        *block-sparse* matrix, in which blocks are missing.

    References:
        Amestoy et al. 2015, "Improving multifrontal methods by means of block low-rank
        representations".

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> layer = BlockLowRankLinear(6, 4, blocks=2, rank=1, generator=g)
        >>> layer(torch.ones(5, 6)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([5, 4]), 20)
    """

    bias: None

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        blocks: int,
        rank: int,
        generator: torch.Generator,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("blocks", blocks), ("rank", rank), ("d_in", d_in), ("d_out", d_out)):
            check_count(name, size)
        if d_in % blocks or d_out % blocks:
            raise ValueError(
                f"sizes must be multiples of {blocks} blocks, got d_in = {d_in}, d_out = {d_out}"
            )
        rows, columns = d_in // blocks, d_out // blocks
        shapes = (blocks, blocks, rows, rank), (blocks, blocks, rank, columns)
        # Outputs of size 1 for inputs of size 1.
        spread = (math.sqrt(3 / d_in), math.sqrt(3 / rank))
        drawn = [
            bound * (2 * rand(*shape, generator=generator, device=device, dtype=dtype) - 1)
            for shape, bound in zip(shapes, spread, strict=True)
        ]
        self.U, self.V = (nn.Parameter(factor) for factor in drawn)
        self.bias = None

    @staticmethod
    def of(W: Float[Tensor, "d_in d_out"], *, blocks: int, rank: int) -> "BlockLowRankLinear":
        """Approximate a matrix, each block by its singular vectors.

        Args:
            W: The matrix.
            blocks: Blocks along each side.
            rank: Of each block.

        Returns:
            The layer: in the Frobenius norm the best of its kind.

        Raises:
            ValueError: If the sizes do not fit.
        """
        d_in, d_out = W.shape
        empty = torch.Generator().manual_seed(0)
        made = BlockLowRankLinear(
            d_in, d_out, blocks=blocks, rank=rank, generator=empty, device=W.device, dtype=W.dtype
        )
        tiles = W.reshape(blocks, d_in // blocks, blocks, d_out // blocks).transpose(1, 2)
        check_count("rank", rank, high=min(tiles.shape[2:]))
        left, values, right = torch.linalg.svd(wide(tiles), full_matrices=False)
        root = values[..., :rank].sqrt()
        with torch.no_grad():
            made.U.copy_(left[..., :rank] * root[..., None, :])
            made.V.copy_(root[..., None] * right[..., :rank, :])
        return made

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Apply all blocks and add up their outputs."""
        parts = torch.unflatten(x, -1, (self.U.shape[0], -1))
        low = torch.einsum("...im,ijmr->...ijr", parts, self.U)
        return torch.einsum("...ijr,ijrn->...jn", low, self.V).flatten(-2)

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:  # type: ignore[override]
        """The matrix, formed, in the layout of ``nn.Linear``."""
        tiles = (self.U @ self.V).transpose(1, 2)
        return tiles.flatten(2, 3).flatten(0, 1).T

    def extra_repr(self) -> str:
        """Show the sizes in ``repr``."""
        blocks, _, rows, rank = self.U.shape
        return f"in={blocks * rows}, out={blocks * self.V.shape[3]}, blocks={blocks}, rank={rank}"


class MonarchLinear(LinearLike):
    r"""A square linear layer that is block-diagonal twice, with a transposition between.

    With :math:`d = b^2` inputs as a :math:`b\times b` table, the first factor mixes each row of
    the table with a matrix of its own, the second each column:

    .. math:: W = R\,P\,L\,P^\top, \qquad 2 d \sqrt d \text{ numbers},

    :math:`R` and :math:`L` block-diagonal with :math:`b` blocks :math:`b\times b`,
    where :math:`P` transposes the table. Every input reaches every output.

    Args:
        d: Inputs and outputs, a square number.
        generator: Draws the factors.
        device: Where the parameters are made.
        dtype: Their dtype.

    Attributes:
        R: (b, b, b), a matrix for each row of the table.
        L: (b, b, b), a matrix for each column.

    Raises:
        ValueError: If ``d`` is not a square.

    Numerics:
        :math:`4 d\sqrt d` FLOPs a row in place of :math:`2d^2`.

    References:
        Dao et al. 2022, arXiv:2204.00595, definition 3.1, there for columns.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> layer = MonarchLinear(9, generator=torch.Generator().manual_seed(0))
        >>> layer(torch.ones(5, 9)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([5, 9]), 54)
    """

    bias: None

    def __init__(
        self,
        d: int,
        *,
        generator: torch.Generator,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("d", d)
        b = math.isqrt(d)
        if b * b != d:
            raise ValueError(f"d must be a square number, got {d}")
        bound = math.sqrt(3 / b)
        R, L = (
            bound * (2 * rand(b, b, b, generator=generator, device=device, dtype=dtype) - 1)
            for _ in range(2)
        )
        self.R, self.L = nn.Parameter(R), nn.Parameter(L)
        self.bias = None

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Mix the rows of the table, then its columns."""
        table = torch.unflatten(x, -1, (len(self.R), -1))
        table = torch.einsum("...im,imn->...in", table, self.R)
        return torch.einsum("...in,nij->...jn", table, self.L).flatten(-2)

    @property
    def weight(self) -> Float[Tensor, "d d"]:  # type: ignore[override]
        """The matrix, formed, in the layout of ``nn.Linear``."""
        eye = torch.eye(len(self.R) ** 2, device=self.R.device, dtype=self.R.dtype)
        made: Tensor = self(eye)
        return made.T

    def extra_repr(self) -> str:
        """Show the size in ``repr``."""
        return f"d={len(self.R) ** 2}"
