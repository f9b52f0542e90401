r"""Second order, for one linear map: the Hessian of its inputs, its inverse, and what follows.

A linear map with the weight of :class:`torch.nn.Linear`, one row :math:`w` for each output, moves
its outputs on the tokens :math:`X` by :math:`X\,\delta w^\top` when a row moves by
:math:`\delta w`. The squared error is :math:`\tfrac12\,\delta w\,H\,\delta w^\top` with
:math:`H = 2 X^\top X`, the same for all rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import (
    check_count,
    check_finite,
    check_in_range,
    check_same_shape,
    check_shape,
    linear_places,
    wide,
)

__all__ = [
    "input_hessian",
    "inverse_factor",
    "obd_saliency",
    "obs_prune",
    "obs_remove",
    "obs_saliency",
    "output_error",
    "refit",
]


def linear_layers(model: nn.Module, targets: Sequence[str]) -> dict[str, Any]:
    """Find the linear layers that hold one of the named maps.

    Args:
        model: Any module.
        targets: Names of maps, as in :func:`companion.core.replace_linears`: ``"down"``,
            ``"blocks.3.*"``.

    Returns:
        Layers by path, each layer once.

    Raises:
        ValueError: If a target is not in the model.
    """
    if isinstance(targets, str) or not targets:
        raise ValueError(f"targets must be a list of names of linear maps, got {targets!r}")
    found: dict[str, Any] = {}
    met: set[str] = set()
    known: set[str] = set()
    for place in linear_places(model):
        path = place.path.rpartition(".")[0]
        full = {name: f"{path}.{name}" if path else name for name in place.maps}
        known |= set(place.maps)
        hits = {
            target
            for target in targets
            for short, long in full.items()
            if fnmatchcase(short, target) or fnmatchcase(long, target)
        }
        met |= hits
        layer = model.get_submodule(place.path)
        if hits and all(layer is not other for other in found.values()):
            found[place.path] = layer
    if missing := [target for target in targets if target not in met]:
        has = ", ".join(sorted(known)) or "none"
        raise ValueError(f"the model has no {', '.join(missing)}; it has {has}")
    return found


@contextmanager
def input_hessian(model: nn.Module, targets: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
    r"""Sum up :math:`H = 2 X^\top X` for linear layers of a model while the ``with`` block runs.

    Each call of a layer adds its input rows: run the model on as many texts as needed, one batch
    after the other. Sums are not divided by the number of rows, so parts of a text add up to the
    whole; nothing that is computed from :math:`H` in this chapter changes with its scale.

    Args:
        model: Any module. It is not changed.
        targets: Names of maps, as in :func:`companion.core.replace_linears`. Maps that are rows of
            one matrix have one Hessian.

    Yields:
        The sums by the paths of the layers, (d_in, d_in), each from the first call of its layer.

    Raises:
        ValueError: If a target is not in the model.

    Numerics:
        Sums in float32, or float64 where the inputs are that. Padding counts like any token: run
        rows of one length, or without padding. A layer whose weight is read without calling it,
        as cross-attention does, is not seen and has no entry.

    References:
        Frantar and Alistarh 2023, arXiv:2301.00774, sec. 3.1.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with input_hessian(model, ["0"]) as H:
        ...     for row in torch.eye(2):
        ...         _ = model(row[None])
        >>> H["0"]
        tensor([[2., 0.],
                [0., 2.]])
    """
    sums: dict[str, Tensor] = {}

    def recorder(path: str) -> Any:
        def record(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = wide(inputs[0].detach()).flatten(0, -2)
            if path not in sums:
                sums[path] = torch.zeros(x.shape[1], x.shape[1], device=x.device, dtype=x.dtype)
            sums[path].addmm_(x.T, x, alpha=2)

        return record

    layers = linear_layers(model, targets)
    hooks = [layer.register_forward_pre_hook(recorder(path)) for path, layer in layers.items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def inverse_factor(
    H: Float[Tensor, "d_in d_in"], *, damping: float = 0.01
) -> Float[Tensor, "d_in d_in"]:
    r"""Compute the upper triangular :math:`U` with :math:`H^{-1} = U^\top U`.

    For any :math:`q`, the inverse of the block of :math:`H` of the inputs from :math:`q` on is
    :math:`U_{q:,q:}^\top U_{q:,q:}`. So :math:`1/U_{qq}^2` is the curvature that is left for input
    :math:`q` when all *later* ones may adapt and all earlier ones are fixed, and
    :math:`U_{q,q:}/U_{qq}` is the direction in which they adapt.

    Args:
        H: Symmetric, positive semi-definite.
        damping: What is added to the diagonal, as a share of its mean. If the factorization fails
            it is raised tenfold until it works.

    Returns:
        :math:`U` in the dtype of ``H``.

    Raises:
        ValueError: If ``H`` is no square matrix or not finite, ``damping`` is negative, or ``H`` is
            singular and the damping is 0.

    Numerics:
        In float64: one Cholesky factorization from the last input to the first,
        :math:`H = R R^\top` with :math:`R` upper triangular, and :math:`U = R^{-1}`;
        :math:`\tfrac43 d_{in}^3` FLOPs, and no inverse is factorized. An input that was always 0
        has a zero row in ``H``; its diagonal entry is set to the mean first, so that it stands
        alone. Set its weights to 0.

    References:
        Frantar and Alistarh 2023, arXiv:2301.00774, sec. 3.3, who invert first and factorize the
        inverse.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> U = inverse_factor(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), damping=0.0)
        >>> U
        tensor([[ 1., -1.],
                [ 0.,  1.]])
        >>> U.T @ U
        tensor([[ 1., -1.],
                [-1.,  2.]])
    """
    check_shape("H", H, (H.shape[-1], H.shape[-1]))
    check_in_range("damping", damping, low=0.0, open_high=True)
    check_finite("H", H)
    diagonal = H.diagonal().double()
    mean = diagonal.mean()
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    while True:
        alone = torch.where(diagonal == 0, mean, torch.zeros_like(mean))
        damped = H.double() + torch.diag(damping * mean + alone)
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if H.device.type == "meta" or int(info) == 0:
            break
        if damping == 0 or damping > 1e6:
            raise ValueError(
                f"H is not positive definite with damping {damping}: give some damping, or more "
                "rows of inputs"
            )
        damping *= 10
    eye = torch.eye(len(H), device=H.device, dtype=torch.float64)
    U: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
    return U.to(H.dtype)


def output_error(
    W: Float[Tensor, "d_out d_in"],
    other: Float[Tensor, "d_out d_in"],
    H: Float[Tensor, "d_in d_in"],
) -> Float[Tensor, ""]:
    r"""Compute the squared error of all outputs on the tokens behind a Hessian.

    .. math::

        \tfrac12 \operatorname{tr}(\delta W\,H\,\delta W^\top) = \lVert X\,\delta W^\top\rVert_F^2

    Args:
        W: Weights, one row for each output.
        other: Weights in their place.
        H: :math:`2 X^\top X`.

    Returns:
        The sum over outputs and tokens.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        In float32 at least, as :func:`input_hessian` sums up: weights may be in half precision.

    Book: :doc:`/book/efficiency/sparsity`
    """
    _check_hessian(W, H)
    check_same_shape("W", W, "other", other)
    change = wide(other) - wide(W)
    return (change @ H.to(change.dtype) * change).sum() / 2


def obs_saliency(
    W: Float[Tensor, "d_out d_in"], inverse: Float[Tensor, "d_in d_in"]
) -> Float[Tensor, "d_out d_in"]:
    r"""Compute what it costs to remove each weight alone, if the others of its row adapt.

    .. math:: \delta L_q = \frac{w_q^2}{2\,[H^{-1}]_{qq}}

    Args:
        W: Weights, one row for each output.
        inverse: :math:`H^{-1}`.

    Returns:
        The costs, in the unit of the quadratic form :math:`\tfrac12\delta w H\delta w^\top`. In
        float32 at least: squares of small weights are zero in float16.

    Raises:
        ValueError: If shapes do not fit.

    References:
        Hassibi and Stork 1992, "Second order derivatives for network pruning: optimal brain
        surgeon", eq. 5.

    Book: :doc:`/book/efficiency/sparsity`
    """
    _check_hessian(W, inverse)
    return wide(W) ** 2 / (2 * inverse.diagonal())


def obd_saliency(
    W: Float[Tensor, "d_out d_in"], H: Float[Tensor, "d_in d_in"]
) -> Float[Tensor, "d_out d_in"]:
    r"""Compute what it costs to remove each weight alone, if the others stay.

    .. math:: \delta L_q = \tfrac12 H_{qq} w_q^2

    Args:
        W: Weights, one row for each output.
        H: The Hessian, of which the diagonal is used.

    Returns:
        The costs, no smaller than those of :func:`obs_saliency`.

    Raises:
        ValueError: If shapes do not fit.

    References:
        LeCun, Denker and Solla 1989, "Optimal brain damage", eq. 5.

    Book: :doc:`/book/efficiency/sparsity`
    """
    _check_hessian(W, H)
    return wide(W) ** 2 * H.diagonal() / 2


def obs_remove(
    w: Float[Tensor, " d_in"], inverse: Float[Tensor, "d_in d_in"], q: int
) -> tuple[Float[Tensor, " d_in"], Float[Tensor, "d_in d_in"]]:
    r"""Remove one weight of a row, let the others adapt, and take its input out of the inverse.

    .. math::

        \delta w = -\frac{w_q}{[H^{-1}]_{qq}}\,H^{-1}_{q,:} \qquad\qquad
        H^{-1} \leftarrow H^{-1} - \frac{H^{-1}_{:,q} H^{-1}_{q,:}}{[H^{-1}]_{qq}}

    Args:
        w: The row.
        inverse: :math:`H^{-1}` of the weights that are not fixed; rows and columns of others are 0.
        q: Which weight, from 0.

    Returns:
        The new row, exactly 0 at ``q``, and the new inverse, exactly 0 in row and column ``q``.

    Raises:
        ValueError: If ``q`` is no place of the row or was removed before.

    References:
        Hassibi and Stork 1992, eq. 5; the update of the inverse: Frantar and Alistarh 2022,
        arXiv:2208.11580, lemma 1.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> inverse = torch.tensor([[1.0, -1.0], [-1.0, 2.0]])
        >>> obs_remove(torch.ones(2), inverse, 1)[0]
        tensor([1.5000, 0.0000])
    """
    _check_hessian(w[None], inverse)
    check_count("q", q, low=0, high=len(w) - 1)
    pivot = inverse[q, q]
    if not bool(pivot > 0):
        raise ValueError(f"weight {q} cannot be removed: its entry of the inverse is {pivot:.3g}")
    row = inverse[q] / pivot
    gone = torch.arange(len(w), device=w.device) == q
    new = (w - w[q] * row).masked_fill(gone, 0)
    rest = inverse - inverse[:, q : q + 1] * row
    return new, rest.masked_fill(gone | gone[:, None], 0)


def obs_prune(
    w: Float[Tensor, " d_in"], H: Float[Tensor, "d_in d_in"], *, count: int
) -> Float[Tensor, " d_in"]:
    r"""Remove weights of one row one by one, always the cheapest, and let the others adapt.

    The definition: :func:`obs_saliency` chooses, :func:`obs_remove` removes, and both are
    recomputed after each step.

    Args:
        w: The row.
        H: Positive definite.
        count: How many weights are removed.

    Returns:
        The row, exactly 0 at the ``count`` places that were removed.

    Raises:
        ValueError: If there are fewer weights, or ``H`` is singular.

    Numerics:
        :math:`O(\text{count}\cdot d_{in}^2)` after one inverse, for one row.
        :func:`sparsegpt` does all rows with one factorization.

    References:
        Frantar and Alistarh 2022, arXiv:2208.11580, algorithm 1.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> obs_prune(torch.ones(2), torch.tensor([[2.0, 1.0], [1.0, 1.0]]), count=1)
        tensor([1.5000, 0.0000])
    """
    check_count("count", count, low=0, high=len(w))
    U = inverse_factor(H, damping=0.0)
    inverse = U.T @ U
    removed = torch.zeros_like(w, dtype=torch.bool)
    for _ in range(count):
        cost = obs_saliency(w[None], inverse)[0].masked_fill(removed, torch.inf)
        q = int(cost.argmin())
        w, inverse = obs_remove(w, inverse, q)
        removed[q] = True
    return w


def refit(
    W: Float[Tensor, "d_out d_in"],
    H: Float[Tensor, "d_in d_in"],
    keep: Bool[Tensor, "d_out d_in"],
) -> Float[Tensor, "d_out d_in"]:
    r"""Compute the best weights on a given mask: a least-squares problem for each row.

    .. math:: \min_{w'}\ (w'-w)\,H\,(w'-w)^\top \quad\text{with } w'_q = 0 \text{ where it goes}

    Args:
        W: Weights, one row for each output.
        H: The Hessian.
        keep: ``True`` for weights that may differ from 0.

    Returns:
        The weights. No others on this mask have a smaller :func:`output_error`.

    Raises:
        ValueError: If shapes do not fit.

    Numerics:
        One solve of the size of a row's kept weights for each row: the exact answer that
        :func:`sparsegpt` approximates, and far dearer. In float32 at least; the result has the
        dtype of ``W``.

    Book: :doc:`/book/efficiency/sparsity`
    """
    _check_hessian(W, H)
    check_same_shape("W", W, "keep", keep)
    high = torch.promote_types(wide(W).dtype, wide(H).dtype)
    old, curvature = W.to(high), H.to(high)
    new = torch.zeros_like(old)
    for row, (w, kept) in enumerate(zip(old, keep, strict=True)):
        target = (w @ curvature)[kept, None]
        new[row, kept] = torch.linalg.lstsq(curvature[kept][:, kept], target).solution[:, 0]
    return new.to(W.dtype)


def _check_hessian(W: Tensor, H: Tensor) -> None:
    check_shape("H", H, (W.shape[-1], W.shape[-1]))
