"""Causes inside a model: put activations of one run into another, and look at the outcome."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import check_count, check_same_shape, check_shape, watch
from companion.transformer.multi_head import attention_layers
from companion.trust.interpretability._gradients import gauss_legendre

__all__ = [
    "Patching",
    "activation_patching",
    "attribution_patching",
    "induction_scores",
    "patching_effect",
]

#: Runs the model on an input and returns one number.
Metric = Callable[[Tensor], Tensor]


def patching_effect(
    patched: Float[Tensor, "*shape"], clean: Float[Tensor, ""], corrupt: Float[Tensor, ""]
) -> Float[Tensor, "*shape"]:
    r"""Scale a metric after patching from clean into corrupt, so that nothing is 0 and all is 1.

    .. math:: \frac{m_{\text{patched}} - m_{\text{corrupt}}}{m_{\text{clean}} - m_{\text{corrupt}}}

    Args:
        patched: The metric of the corrupt run with activations of the clean one.
        clean: The metric of the clean run.
        corrupt: The metric of the corrupt run.

    Returns:
        Shares; they may lie outside of 0 to 1. Not finite where both runs have one metric.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> patching_effect(torch.tensor([1.0]), torch.tensor(3.0), torch.tensor(-2.0))
        tensor([0.6000])
    """
    return (patched - corrupt) / (clean - corrupt)


@dataclass(frozen=True, eq=False)
class Patching:
    """Metrics with and without patches, all from the clean run into the corrupt one.

    Attributes:
        clean: The metric of the clean run.
        corrupt: That of the corrupt run.
        patched: That of the corrupt run with one piece of one site from the clean run, or the
            estimate of it, (sites, pieces).
    """

    clean: Float[Tensor, ""]
    corrupt: Float[Tensor, ""]
    patched: Float[Tensor, "sites pieces"]

    @property
    def effect(self) -> Float[Tensor, "sites pieces"]:
        """:func:`patching_effect` of each."""
        return patching_effect(self.patched, self.clean, self.corrupt)


def activation_patching(
    model: nn.Module,
    metric: Metric,
    clean: Tensor,
    corrupt: Tensor,
    *,
    sites: Sequence[str],
    pieces: Sequence[int] | None = None,
) -> Patching:
    r"""Run the corrupt input with one piece of one activation taken from the clean run.

    A piece is an index of the activation's axis 1: a head of ``heads``, a position of ``stream``.

    Args:
        model: A model with sites.
        metric: Runs this model once on an input and returns a number.
        clean: The input whose activations are taken.
        corrupt: The input that they are put into, of the same shape.
        sites: Names of sites, each once; their activations must have one size along axis 1.
        pieces: Which indices of axis 1; by default all.

    Returns:
        The metrics; a run of the model for each piece of each site.

    Raises:
        ValueError: If the inputs or the activations differ in shape, the metric returns no single
            number, there is no such site, or an index is out of range.

    References:
        Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262. On the choice of
        metric and corruption: Zhang and Nanda 2024, arXiv:2309.16042.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> from companion.transformer.multi_head import MultiHeadAttention
        >>> layer = MultiHeadAttention(6, 3)
        >>> a, b = torch.ones(2, 1, 5, 6).unbind(0)
        >>> run = lambda x: layer(x).sum()
        >>> activation_patching(layer, run, a, -b, sites=["heads"]).patched.shape
        torch.Size([1, 3])
    """
    with torch.no_grad():
        m_clean, m_corrupt, held, _ = _both_runs(model, metric, clean, corrupt, sites)
        size = held[sites[0]].shape[1]
        chosen = range(size) if pieces is None else pieces
        rows = []
        for site in sites:
            row = []
            for piece in chosen:
                check_count("piece", piece, low=0, high=size - 1)
                with watch(model, replace={site: _Swap(held[site], piece)}):
                    row.append(_number(metric(corrupt)))
            rows.append(torch.stack(row))
    return Patching(m_clean, m_corrupt, torch.stack(rows))


class _Swap:
    """Puts one piece of a kept activation into another."""

    def __init__(self, kept: Tensor, piece: int) -> None:
        self.kept, self.piece = kept, piece

    def __call__(self, value: Tensor) -> Tensor:
        made = value.clone()
        made[:, self.piece] = self.kept[:, self.piece]
        return made


def attribution_patching(
    model: nn.Module,
    metric: Metric,
    clean: Tensor,
    corrupt: Tensor,
    *,
    sites: Sequence[str],
    along: str | None = None,
    steps: int = 5,
) -> Patching:
    r"""Estimate :func:`activation_patching` of all pieces by two runs and one gradient, or a few.

    .. math:: m(h) + (h^{\text{clean}} - h) \cdot \frac{\partial m}{\partial h}

    at the corrupt run's activations :math:`h`, to first order. With a site ``along``, the gradient
    is the mean over the way on which that site's activation :math:`x` goes straight from the
    corrupt run to the clean one:

    .. math:: m(h) + (h^{\text{clean}} - h) \cdot \int_0^1 \frac{\partial m}{\partial h}
        \Big|_{x + \alpha (x^{\text{clean}} - x)}\, d\alpha

    Args:
        model: As in :func:`activation_patching`.
        metric: As there; it must be differentiable.
        clean: As there.
        corrupt: As there.
        sites: As there.
        along: The site that is moved, as a rule ``embedded``; by default none.
        steps: Points on the way, by :func:`companion.trust.interpretability.gauss_legendre`: a run
            and a gradient each.

    Returns:
        The metrics of both runs, and the estimates. Effects of the site ``along`` itself add up to
        1, but for the error of the integral.

    Raises:
        ValueError: As there, or if the metric does not depend on a site.

    References:
        Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale"; Syed, Rager
        and Conmy 2023, arXiv:2310.10348. Along a way: Hanna, Pezzelle and Belinkov 2024,
        arXiv:2403.17806, for edges and with points at even distances.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> from companion.transformer.multi_head import MultiHeadAttention
        >>> layer = MultiHeadAttention(6, 3)
        >>> a, b = torch.ones(2, 1, 5, 6).unbind(0)
        >>> run = lambda x: layer(x).sum()
        >>> attribution_patching(layer, run, a, -b, sites=["heads"]).patched.shape
        torch.Size([1, 3])
    """
    check_count("steps", steps)
    more = [] if along is None or along in sites else [along]
    with torch.enable_grad():
        m_clean, m_corrupt, held, own = _both_runs(model, metric, clean, corrupt, sites, more)
        if along is None:
            slopes = _slopes(m_corrupt, [own[site] for site in sites], sites)
        else:
            slopes = [torch.zeros_like(own[site]) for site in sites]
            places, weights = gauss_legendre(steps)
            for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
                between = torch.lerp(own[along].detach(), held[along], place)
                start: dict[str, Callable[[Tensor], Tensor]] = dict.fromkeys(sites, _with_gradient)
                start[along] = _Put(between)
                with watch(model, read=sites, replace=start) as seen:
                    told = _number(metric(corrupt))
                there = _slopes(told, [seen[site] for site in sites], sites)
                slopes = [a + weight * b for a, b in zip(slopes, there, strict=True)]
    m_clean, m_corrupt = m_clean.detach(), m_corrupt.detach()
    rows = []
    for site, slope in zip(sites, slopes, strict=True):
        change = (held[site] - own[site]).detach() * slope
        rows.append(m_corrupt + change.transpose(0, 1).flatten(1).sum(1))
    return Patching(m_clean, m_corrupt, torch.stack(rows))


def _slopes(told: Tensor, here: list[Tensor], sites: Sequence[str]) -> list[Tensor]:
    """The gradient of a metric at each of several sites."""
    if not told.requires_grad:
        raise ValueError("the metric does not depend on the model: run it without no_grad")
    try:
        return list(torch.autograd.grad(told, here))
    except RuntimeError as error:
        raise ValueError(f"the metric does not depend on each of {list(sites)}") from error


class _Put:
    """Puts one value in the place of another, and lets gradients begin there."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, value: Tensor) -> Tensor:
        return self.value.detach().requires_grad_()


def _number(value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ValueError(f"the metric must return one number, got shape {tuple(value.shape)}")
    return value.reshape(())


def _with_gradient(value: Tensor) -> Tensor:
    return value if value.requires_grad else value.detach().requires_grad_()


def _both_runs(
    model: nn.Module,
    metric: Metric,
    clean: Tensor,
    corrupt: Tensor,
    sites: Sequence[str],
    more: Sequence[str] = (),
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Metrics and activations of either run, at the sites and at some more."""
    check_same_shape("clean", clean, "corrupt", corrupt)
    if isinstance(sites, str) or len(set(sites)) < len(sites) or not len(sites):
        raise ValueError(f"sites must be a list of names, each once, got {sites!r}")
    every = [*sites, *more]
    if any("*" in site for site in every):
        raise ValueError(f"name each site in full, got {every}")
    with watch(model, read=every) as seen:
        m_clean = _number(metric(clean))
        held = {site: seen[site].detach() for site in every}
    # In a frozen model gradients begin at the first site that is reached.
    begin = dict.fromkeys(sites, _with_gradient) if torch.is_grad_enabled() else {}
    with watch(model, read=every, replace=begin) as seen:
        m_corrupt = _number(metric(corrupt))
        own = {site: seen[site] for site in every}
    sizes = {held[site].shape[1] for site in sites}
    if len(sizes) > 1:
        raise ValueError(f"activations of the sites must have one size of axis 1, got {sizes}")
    return m_clean, m_corrupt, held, own


def induction_scores(
    model: nn.Module, ids: Integer[Tensor, "batch n"], *, period: int
) -> Float[Tensor, "layers heads"]:
    r"""Measure how much each head reads the token *after* the last place of the same token.

    .. math:: \frac{1}{n - p}\sum_{t=p}^{n-1} A_{t,\,t-p+1}

    on texts that repeat with period :math:`p`, :math:`t` counting from 0.

    Args:
        model: A decoder whose attention has the site ``weights``.
        ids: Texts of :math:`n` tokens, each token equal to the one a period before.
        period: :math:`p`, at least 2 and below :math:`n`.

    Returns:
        Mean weights in [0, 1], averaged over the texts.

    Raises:
        ValueError: If the period is out of range, or a text does not repeat.

    Numerics:
        Weights of all layers are held at once. Random tokens leave nothing else to read than
        their repetition.

    References:
        Olsson et al. 2022, arXiv:2209.11895.

    Book: :doc:`/book/trust/interpretability`
    """
    check_shape("ids", ids, (None, None))
    n = ids.shape[1]
    check_count("period", period, low=2, high=n - 1)
    if ids.device.type != "meta" and not torch.equal(ids[:, period:], ids[:, :-period]):
        raise ValueError(f"the texts must repeat with a period of {period}")
    attention_layers(model)
    reads = torch.arange(period, n, device=ids.device)
    with torch.no_grad(), watch(model, read=["*.weights"]) as seen:
        model(ids)
        return torch.stack([A[:, :, reads, reads - period + 1].mean((0, 2)) for A in seen.values()])
