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
from jaxtyping import Float
from torch import Tensor, nn

from companion.core import check_finite, check_in_range, check_shape, linear_places, wide

__all__ = ["input_hessian", "inverse_factor", "linear_layers"]


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
        :math:`\tfrac23 d_{in}^3` FLOPs, and no inverse is factorized. An input that was always 0
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
                f"H is not positive definite with damping {damping}: give some damping, or more rows "
                "of inputs"
            )
        damping *= 10
    eye = torch.eye(len(H), device=H.device, dtype=torch.float64)
    return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True).to(H.dtype)
