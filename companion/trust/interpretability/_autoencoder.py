"""Sparse autoencoders: many directions, of which each activation uses a few."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from companion.core import check_count, check_finite, check_floating, check_in_range, check_shape
from companion.foundations.optimization import Adam

__all__ = ["AutoencoderReport", "SparseAutoencoder", "autoencoder_report", "train_autoencoder"]


class SparseAutoencoder(nn.Module):
    r"""A dictionary of directions, and a layer that says how much of each is there.

    .. math:: f = \mathrm{ReLU}\big((x - b_d) W_e + b_e\big), \qquad \hat x = f W_d + b_d

    The rows of :math:`W_d` are the directions, of length one. With ``k`` only the :math:`k`
    largest entries of :math:`f` are kept.

    Args:
        dim: Width of the activations.
        features: Number of directions.
        k: How many are used at once; by default as many as are positive, which a penalty of
            :func:`train_autoencoder` keeps few.
        generator: Draws the directions; the encoder starts as their transpose.
        device: Where the parameters are made.
        dtype: Their type.

    Raises:
        ValueError: If a count is out of range.

    References:
        Bricken et al. 2023, https://transformer-circuits.pub/2023/monosemantic-features;
        Cunningham et al. 2023, arXiv:2309.08600. With ``k``: Gao et al. 2024, arXiv:2406.04093.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> sae = SparseAutoencoder(3, 7, generator=torch.Generator().manual_seed(0))
        >>> sae(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        dim: int,
        features: int,
        *,
        k: int | None = None,
        generator: torch.Generator,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        check_count("features", features)
        if k is not None:
            check_count("k", k, high=features)
        self.k = k
        drawn = torch.randn(features, dim, generator=generator, device=generator.device)
        rows = nn.functional.normalize(drawn, dim=1).to(device=device, dtype=dtype)
        self.decoder = nn.Parameter(rows)
        self.encoder = nn.Parameter(rows.detach().T.clone())
        self.encoder_bias = nn.Parameter(rows.new_zeros(features))
        self.center = nn.Parameter(rows.new_zeros(dim))

    def encode(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch features"]:
        """Say how much of each direction is in an activation.

        Args:
            x: Activations.

        Returns:
            Features, 0 or more.
        """
        f = torch.relu((x - self.center) @ self.encoder + self.encoder_bias)
        if self.k is None:
            return f
        kept = f.topk(self.k, dim=-1)
        return torch.zeros_like(f).scatter(-1, kept.indices, kept.values)

    def decode(self, f: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch dim"]:
        """Add up directions.

        Args:
            f: How much of each.

        Returns:
            Activations.
        """
        return f @ self.decoder + self.center

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Encode and decode.

        Args:
            x: Activations.

        Returns:
            Their reconstruction.
        """
        return self.decode(self.encode(x))


def train_autoencoder(
    autoencoder: SparseAutoencoder,
    activations: Float[Tensor, "n dim"],
    *,
    steps: int,
    generator: torch.Generator,
    penalty: float = 0.0,
    batch_size: int = 512,
    lr: float = 1e-3,
    directions: bool = True,
) -> list[float]:
    r"""Train an autoencoder, in place.

    .. math:: \frac1n\sum_i \lVert x_i - \hat x_i \rVert^2 + \lambda \lVert f_i \rVert_1

    After each step the directions are brought back to length one: otherwise features could shrink
    and directions grow, and the penalty would cost nothing. The center starts at the mean of the
    activations.

    Args:
        autoencoder: What is trained.
        activations: :math:`x_i`. Scale them so that their mean squared length is their width, and
            penalties compare across layers.
        steps: Steps of Adam.
        generator: Draws the batches.
        penalty: :math:`\lambda`, 0 or more; 0 for an autoencoder with ``k``.
        batch_size: Activations in a step.
        lr: Learning rate at the start; it falls to 0 in a straight line.
        directions: Whether the directions learn. If not, they stay random and only the encoder and
            the biases learn: the baseline that a result about directions must beat.

    Returns:
        The loss of each step, before the step.

    Raises:
        ValueError: If a shape or count does not fit, or an activation is not finite.

    References:
        The penalty and the unit rows: Bricken et al. 2023. Random directions as a baseline:
        Korznikov et al. 2026, arXiv:2602.14111.

    Book: :doc:`/book/trust/interpretability`
    """
    check_floating("activations", activations)
    dim = autoencoder.decoder.shape[1]
    check_shape("activations", activations, (None, dim))
    check_count("activations", len(activations))
    check_finite("activations", activations)
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    check_in_range("penalty", penalty, low=0.0, open_high=True)
    x = activations.detach().to(autoencoder.decoder)
    learns = [autoencoder.encoder, autoencoder.encoder_bias, autoencoder.center]
    if directions:
        learns.append(autoencoder.decoder)
    rule = Adam(learns, lr=lr)
    losses = []
    with torch.no_grad():
        autoencoder.center.copy_(x.mean(0))
    for step in range(steps):
        for group in rule.param_groups:
            group["lr"] = lr * (1 - step / steps)
        drawn = torch.randint(len(x), (batch_size,), generator=generator, device=generator.device)
        some = x[drawn.to(x.device)]
        with torch.enable_grad():
            f = autoencoder.encode(some)
            lost = (some - autoencoder.decode(f)).square().sum(-1)
            loss = (lost + penalty * f.sum(-1)).mean()
            grads = torch.autograd.grad(loss, learns)
        for parameter, grad in zip(learns, grads, strict=True):
            parameter.grad = grad
        rule.step()
        losses.append(float(loss.detach()))
        if directions:
            with torch.no_grad():
                rows = nn.functional.normalize(autoencoder.decoder, dim=1)
                autoencoder.decoder.copy_(rows)
    for parameter in learns:
        parameter.grad = None
    return losses


class AutoencoderReport(NamedTuple):
    """How well an autoencoder does on activations that it has not seen.

    Attributes:
        active: Mean number of features above 0 in an activation, :math:`L_0`.
        explained: One minus the squared error over the variance of the activations; 0 for their
            mean, 1 for a perfect reconstruction, NaN where all activations are alike.
        dead: Which features are above 0 for none of the activations, (features,).
    """

    active: float
    explained: float
    dead: Bool[Tensor, " features"]


def autoencoder_report(
    autoencoder: SparseAutoencoder, activations: Float[Tensor, "n dim"], *, batch_size: int = 2048
) -> AutoencoderReport:
    """Measure sparsity, reconstruction and death on held-out activations.

    Args:
        autoencoder: The autoencoder.
        activations: Activations scaled as those of training. A feature that is rare may look dead
            on few of them.
        batch_size: How many at once.

    Returns:
        The report.

    Raises:
        ValueError: If a shape does not fit, or there is no activation.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> sae = SparseAutoencoder(3, 7, generator=torch.Generator().manual_seed(0))
        >>> autoencoder_report(sae, torch.eye(3)).dead.shape
        torch.Size([7])
    """
    check_shape("activations", activations, (None, autoencoder.decoder.shape[1]))
    check_count("activations", len(activations))
    x = activations.detach().to(autoencoder.decoder)
    lost, active = 0.0, 0.0
    alive = torch.zeros(len(autoencoder.decoder), dtype=torch.bool, device=x.device)
    with torch.no_grad():
        for some in torch.split(x, batch_size):
            f = autoencoder.encode(some)
            lost += float((some - autoencoder.decode(f)).double().square().sum())
            active += float((f > 0).sum())
            alive |= (f > 0).any(0)
        spread = float((x - x.mean(0)).double().square().sum())
    explained = 1 - lost / spread if spread else float("nan")
    return AutoencoderReport(active / len(x), explained, ~alive)
