r"""Mixtures of experts: many feed-forward networks, of which each token uses a few."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from companion.core import HasSites, check_count, check_in_range, check_shape, wide
from companion.transformer.block import (
    FeedForward,
    GatedFeedForward,
    PartFactory,
    TransformerConfig,
)

__all__ = [
    "MixtureOfExperts",
    "Routing",
    "balance_bias",
    "experts_factory",
    "load_balance",
    "mixture_by_hand",
    "route",
]

Scores = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, eq=False)
class Routing:
    """Where tokens go.

    Attributes:
        experts: The chosen experts of each token, best first, (tokens, k).
        gates: What the output of each is multiplied by, (tokens, k).
        probabilities: Of all experts, (tokens, experts); each row sums to 1.
    """

    experts: Integer[Tensor, "tokens k"]
    gates: Float[Tensor, "tokens k"]
    probabilities: Float[Tensor, "tokens experts"]


def route(
    logits: Float[Tensor, "tokens experts"],
    *,
    k: int,
    scores: Scores = "softmax",
    renormalize: bool = True,
    bias: Float[Tensor, " experts"] | None = None,
) -> Routing:
    r"""Choose the experts of each token, and how much each counts.

    .. math:: g_i = \frac{s_i}{\sum_{j\in\mathrm{Top}k} s_j}, \qquad
        \mathrm{Top}k = \text{the } k \text{ largest } s_i + b_i

    with :math:`s` the softmax or the sigmoid of the logits.

    Args:
        logits: One row for each token.
        k: How many experts a token uses.
        scores: Which function makes scores of the logits.
        renormalize: Divide the chosen scores by their sum. Otherwise they are the gates.
        bias: Added for the choice alone, not in the gates.

    Returns:
        The routing. Softmax, choice and renormalization give the softmax of the chosen logits.

    Raises:
        ValueError: If ``k`` or the kind of scores is out of range, or shapes do not fit.

    Numerics:
        In float32 at least. The choice has no gradient; gates and probabilities do.

    References:
        Shazeer et al. 2017, arXiv:1701.06538, eqs. 3 to 5, here without noise; Jiang et al. 2024,
        arXiv:2401.04088, sec. 2.1; the bias and sigmoids: DeepSeek-AI 2024, arXiv:2412.19437,
        eqs. 13 to 16.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> route(torch.tensor([[0.7, 0.2, 0.06, 0.04]]).log(), k=2).gates
        tensor([[0.7778, 0.2222]])
    """
    check_shape("logits", logits, (None, None))
    experts = logits.shape[1]
    check_count("k", k, high=experts)
    if scores not in ("softmax", "sigmoid"):
        raise ValueError(f"scores must be 'softmax' or 'sigmoid', got {scores!r}")
    if bias is not None:
        check_shape("bias", bias, (experts,))
    z = wide(logits)
    s = torch.softmax(z, -1) if scores == "softmax" else torch.sigmoid(z)
    # Scores round to 0 and to 1 where logits still differ.
    chosen = (z.detach() if bias is None else s.detach() + bias).topk(k, -1).indices
    # Logits far below zero have sigmoids of 0, and no sum to divide by: the log holds on.
    log_s = torch.log_softmax(z, -1) if scores == "softmax" else nn.functional.logsigmoid(z)
    gates = torch.softmax(log_s.gather(-1, chosen), -1) if renormalize else s.gather(-1, chosen)
    probabilities = s if scores == "softmax" else torch.softmax(log_s, -1)
    return Routing(chosen, gates, probabilities)


def load_balance(
    routing: Routing, *, real: Bool[Tensor, " tokens"] | None = None
) -> Float[Tensor, ""]:
    r"""Compute the loss whose gradient moves the router toward using all experts alike.

    .. math:: N \sum_{i=1}^N f_i P_i, \qquad \textstyle\sum_i f_i = \sum_i P_i = 1

    for :math:`N` experts, :math:`f_i` the share of all choices that fell on expert :math:`i`,
    and :math:`P_i` its mean probability. It is 1 where either is uniform, and that is no minimum:
    where many narrow choices meet a few sure ones it can be less.

    Args:
        routing: What :func:`route` has returned.
        real: ``True`` for tokens, ``False`` for padding, which does not count.

    Returns:
        The loss. Gradients flow through the probabilities; the shares have none.

    Raises:
        ValueError: If shapes do not fit or no token is real.

    Numerics:
        The Mixtral of ``transformers`` divides the number of choices by that of the tokens: its
        loss is ``k`` times this one.

    References:
        Fedus, Zoph and Shazeer 2022, arXiv:2101.03961, eqs. 4 to 6, there for ``k = 1``.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> even = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
        >>> print(f"{load_balance(route(even, k=1)):.3f}")
        1.000
    """
    chosen, p = routing.experts, routing.probabilities
    if real is not None:
        check_shape("real", real, (p.shape[0],))
        chosen, p = chosen[real], p[real]
    if not len(p):
        raise ValueError("there is no token to balance: real is False everywhere")
    used = torch.zeros_like(p).scatter_add(1, chosen, torch.ones_like(chosen, dtype=p.dtype))
    share = used.sum(0) / chosen.numel()
    return p.shape[1] * (share * p.mean(0)).sum()


def balance_bias(
    bias: Float[Tensor, " experts"],
    routing: Routing,
    *,
    step: float = 1e-3,
    real: Bool[Tensor, " tokens"] | None = None,
) -> Float[Tensor, " experts"]:
    r"""Move the bias of the choice toward balance, with no loss and no gradient.

    .. math:: b_i \leftarrow b_i + \text{step}\cdot\operatorname{sign}(\bar c - c_i)

    for :math:`c_i` the choices of expert :math:`i` and :math:`\bar c` their mean.

    Args:
        bias: The bias so far.
        routing: The choices that it led to.
        step: By how much an entry moves.
        real: ``True`` for tokens, ``False`` for padding.

    Returns:
        The new bias.

    Raises:
        ValueError: If shapes do not fit or the step is negative.

    Numerics:
        Keep the bias in float32: near 1, bfloat16 has steps of 0.008, and one of 0.001 is lost.

    References:
        Wang et al. 2024, arXiv:2408.15664, algorithm 1.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> balance_bias(torch.zeros(3), route(torch.eye(3)[:2], k=1), step=0.5)
        tensor([-0.5000, -0.5000,  0.5000])
    """
    check_shape("bias", bias, (routing.probabilities.shape[1],))
    check_in_range("step", step, low=0.0, open_high=True)
    chosen = routing.experts
    if real is not None:
        check_shape("real", real, (chosen.shape[0],))
        chosen = chosen[real]
    # Counted in integers: in bfloat16 a sum of ones stops at 256.
    counts = torch.bincount(chosen.flatten(), minlength=len(bias)).to(wide(bias).dtype)
    return bias + step * torch.sign(counts.mean() - counts).to(bias.dtype)


class MixtureOfExperts(HasSites):
    r"""A feed-forward layer of many networks, of which each token uses ``k``.

    .. math:: y = \sum_{i\in\mathrm{Top}k(x)} g_i(x)\,F_i(x)

    Args:
        dim: Size of a token.
        ff_dim: Hidden units of each expert.
        experts: How many there are.
        k: How many a token uses.
        gated: Whether experts are :class:`~companion.transformer.block.GatedFeedForward`.
        activation: Of the experts.
        bias: Whether their maps have biases.
        scores: As for :func:`route`.
        renormalize: As for :func:`route`.
        capacity: Most tokens of an expert, as a multiple of the mean
            ``k * tokens / experts``, rounded up; those beyond are left out, first choices
            last. With ``None`` no token is.
        device: Where the parameters are made.
        dtype: Their dtype.

    Attributes:
        router: ``nn.Linear`` without bias, from a token to the logits.
        networks: The experts.
        choice_bias: A buffer, added for the choice alone; see :func:`balance_bias`.
        sites: ``router_logits``, (tokens, experts), for a loss such as :func:`load_balance`:
            ``route`` of what was read, by :meth:`routing`.

    Raises:
        ValueError: If a number is out of range.

    Numerics:
        Tokens are sorted by their expert, so an expert runs once, on its own tokens: the work
        grows with ``k``, the memory with ``experts``. How many rows an expert has depends on the
        data, so there is no ``meta`` run. With a capacity what a token gets depends on the other
        tokens of the batch, later ones included: do not generate with it.

    References:
        Shazeer et al. 2017, arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088, sec. 2.1;
        capacity: Fedus et al. 2022, arXiv:2101.03961, eq. 3.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> MixtureOfExperts(6, 5, experts=4, k=2)(torch.zeros(2, 3, 6)).shape
        torch.Size([2, 3, 6])
    """

    sites = ("router_logits",)
    choice_bias: Tensor

    def __init__(
        self,
        dim: int,
        ff_dim: int,
        *,
        experts: int,
        k: int = 2,
        gated: bool = True,
        activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "silu",
        bias: bool = False,
        scores: Scores = "softmax",
        renormalize: bool = True,
        capacity: float | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("experts", experts)
        check_count("k", k, high=experts)
        if scores not in ("softmax", "sigmoid"):
            raise ValueError(f"scores must be 'softmax' or 'sigmoid', got {scores!r}")
        if capacity is not None:
            check_in_range("capacity", capacity, low=0.0, open_low=True, open_high=True)
        kind = GatedFeedForward if gated else FeedForward
        self.k, self.scores, self.renormalize, self.capacity = k, scores, renormalize, capacity
        self.router = nn.Linear(dim, experts, bias=False, device=device, dtype=dtype)
        self.networks = nn.ModuleList(
            kind(dim, ff_dim, activation=activation, bias=bias, device=device, dtype=dtype)
            for _ in range(experts)
        )
        self.register_buffer("choice_bias", torch.zeros(experts, device=device))

    def routing(self, logits: Float[Tensor, "tokens experts"]) -> Routing:
        """Route by this layer's rule.

        Args:
            logits: What the router has returned.

        Returns:
            The routing.
        """
        return route(
            logits,
            k=self.k,
            scores=self.scores,
            renormalize=self.renormalize,
            bias=self.choice_bias,
        )

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Send each token to its experts and add up what they return."""
        tokens = x.flatten(0, -2)
        routing = self.routing(self.site("router_logits", self.router(tokens)))
        count, experts = len(tokens), len(self.networks)
        # All first choices before all second ones, so that the latter overflow first.
        flat = routing.experts.T.flatten()
        gates = routing.gates.T.flatten()
        order = flat.argsort(stable=True)
        sizes = torch.bincount(flat, minlength=experts).tolist()
        room = count * self.k
        if self.capacity is not None:
            room = math.ceil(self.capacity * self.k * count / experts)
        out = torch.zeros_like(tokens, dtype=gates.dtype)
        for network, chosen in zip(self.networks, torch.split(order, sizes), strict=True):
            mine = chosen[:room]
            if len(mine):
                rows = mine % count
                y = network(tokens[rows]) * gates[mine, None]
                out = out.index_add(0, rows, y.to(out.dtype))
        return out.to(x.dtype).reshape(x.shape)

    def extra_repr(self) -> str:
        """Show the choice in ``repr``."""
        return f"experts={len(self.networks)}, k={self.k}, capacity={self.capacity}"


def mixture_by_hand(
    layer: MixtureOfExperts, x: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*batch dim"]:
    """Compute a mixture as it is defined: every expert on every token, times its gate or 0.

    Args:
        layer: A layer without a capacity.
        x: Tokens.

    Returns:
        What the layer returns, for ``experts / k`` times the work.

    Raises:
        ValueError: If the layer has a capacity.

    Book: :doc:`/book/efficiency/sparsity`
    """
    if layer.capacity is not None:
        raise ValueError(f"the definition leaves no token out, got capacity {layer.capacity}")
    tokens = x.flatten(0, -2)
    routing = layer.routing(layer.router(tokens))
    gates = torch.zeros_like(routing.probabilities).scatter(1, routing.experts, routing.gates)
    outputs = torch.stack([network(tokens) for network in layer.networks], 1)
    return (gates[:, None] @ outputs.to(gates.dtype))[:, 0].to(x.dtype).reshape(x.shape)


def experts_factory(
    *, experts: int, k: int = 2, ff_dim: int | None = None, capacity: float | None = None
) -> PartFactory:
    """Make a ``feed_forward=`` for the models of :mod:`companion.transformer.block`.

    Args:
        experts: How many each layer has.
        k: How many a token uses.
        ff_dim: Hidden units of each expert; by default those of the description divided by ``k``,
            so that a token costs what it did, besides the router.
        capacity: As for :class:`MixtureOfExperts`.

    Returns:
        The factory.

    Raises:
        ValueError: From the factory, if ``k`` does not divide the hidden units.

    Book: :doc:`/book/efficiency/sparsity`

    Example:
        >>> from companion.transformer.block import Decoder
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=32, context=9)
        >>> model = Decoder(config, feed_forward=experts_factory(experts=4))
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 7])
    """

    def make(config: TransformerConfig, layer: int) -> nn.Module:
        if ff_dim is None and config.ff_dim % k:
            raise ValueError(f"ff_dim = {config.ff_dim} is no multiple of k = {k}: give ff_dim")
        return MixtureOfExperts(
            config.dim,
            config.ff_dim // k if ff_dim is None else ff_dim,
            experts=experts,
            k=k,
            gated=config.gated,
            activation=config.ff_activation,
            bias=config.ff_bias,
            capacity=capacity,
        )

    return make
