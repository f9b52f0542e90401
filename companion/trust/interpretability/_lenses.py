"""What the stream of a decoder would predict if it ended here, and which part pushes a logit."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from companion.core import (
    check_count,
    check_finite,
    check_floating,
    check_in_range,
    check_same_shape,
    check_shape,
    watch,
    wide_dtype,
)
from companion.foundations.optimization import Adam
from companion.transformer.block import Decoder, LayerNorm, RMSNorm
from companion.transformer.multi_head import MultiHeadAttention

__all__ = [
    "LogitParts",
    "Translator",
    "direct_logits",
    "fit_translator",
    "lens_logits",
    "logit_lens",
    "tune_translator",
]


def _check_pre(model: Decoder) -> None:
    if model.final_norm is None:
        raise ValueError(
            "a model whose norms stand after each block has no final norm: there is no lens for it"
        )


def lens_logits(
    model: Decoder, states: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*batch vocab"]:
    r"""Read a state of the residual stream as if it were the last one.

    .. math:: \mathrm{norm}_L(h)\, W_U

    The final norm measures the scale of each state anew.

    Args:
        model: A decoder with norms before its parts.
        states: States :math:`h` of its stream, from any depth.

    Returns:
        Logits; of the last state those of the model.

    Raises:
        ValueError: If the model has no final norm, or the width differs.

    References:
        nostalgebraist 2020, "interpreting GPT: the logit lens".

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> lens_logits(Decoder(config), torch.ones(2, 12)).shape
        torch.Size([2, 7])
    """
    _check_pre(model)
    if states.shape[-1] != model.config.dim:
        raise ValueError(f"states must be {model.config.dim} wide, got {tuple(states.shape)}")
    logits: Tensor = model.head(model._finish(states))
    return logits


def logit_lens(
    model: Decoder,
    ids: Integer[Tensor, "batch n"],
    *,
    depths: Sequence[int] | None = None,
    last: int | None = None,
) -> Float[Tensor, "depths batch kept vocab"]:
    """Read the stream of a text after each block as if it were the last.

    Args:
        model: As in :func:`lens_logits`.
        ids: Token ids.
        depths: After how many blocks: 0 is the embeddings, the number of blocks the model itself;
            by default all from 0 on.
        last: For the last positions only; by default for all.

    Returns:
        Logits, the first axis one of depth. Held at once: choose depths where the vocabulary is
        large.

    Raises:
        ValueError: As :func:`lens_logits`, or if a depth or ``last`` is out of range.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=2, heads=3, ff_dim=31, context=9)
        >>> logit_lens(Decoder(config), torch.tensor([[1, 2, 3]]), last=1).shape
        torch.Size([3, 1, 1, 7])
    """
    _check_pre(model)
    layers = len(model.blocks)
    chosen = range(layers + 1) if depths is None else depths
    for depth in chosen:
        check_count("depth", depth, low=0, high=layers)
    check_count("depths", len(chosen))
    n = ids.shape[-1]
    if last is not None:
        check_count("last", last, high=n)
    names = ["embedded" if d == 0 else f"blocks.{d - 1}.stream" for d in chosen]
    with torch.no_grad(), watch(model, read=sorted(set(names))) as seen:
        model.hidden(ids)
        kept = [seen[name][:, n - (n if last is None else last) :] for name in names]
    with torch.no_grad():
        return torch.stack([lens_logits(model, state) for state in kept])


class Translator(nn.Module):
    r"""An affine map from the stream of one depth to what the last one expects.

    .. math:: h \mapsto h + h A + b

    It starts as the identity.

    Args:
        dim: Width of the stream.
        device: Where the parameters are made.
        dtype: Their type.

    References:
        Belrose et al. 2023, arXiv:2303.08112.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> Translator(3)(torch.ones(1, 3)).tolist()
        [[1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        dim: int,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("dim", dim)
        self.weight = nn.Parameter(torch.zeros(dim, dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def forward(self, states: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Translate states.

        Args:
            states: States of the stream.

        Returns:
            States for the final norm.
        """
        return states + states @ self.weight + self.bias


def fit_translator(
    states: Float[Tensor, "n dim"], final: Float[Tensor, "n dim"], *, l2: float
) -> Translator:
    r"""Fit a translator by least squares: a start for :func:`tune_translator`, or a lens by itself.

    .. math:: \min_{A, b}\; \frac1n \sum_i \lVert h_i + h_i A + b - h_i^L \rVert^2
        + \lambda \lVert A \rVert_F^2

    Args:
        states: :math:`h_i`, from one depth.
        final: :math:`h_i^L`, the last state of the same tokens, before the final norm.
        l2: :math:`\lambda > 0`.

    Returns:
        The translator, in the type of the states.

    Raises:
        ValueError: If shapes differ, a state is not finite, or ``l2`` is not above 0.

    Numerics:
        The normal equations in float64; :math:`n` may be below the width.

    References:
        As a lens by itself: Yom Din et al. 2024, arXiv:2303.09435.

    Book: :doc:`/book/trust/interpretability`

    Example:
        >>> h = torch.tensor([[0.0], [1.0], [2.0]])
        >>> fit_translator(h, 3 * h + 1, l2=1e-9)(torch.tensor([[5.0]])).round()
        tensor([[16.]], grad_fn=<RoundBackward0>)
    """
    check_floating("states", states)
    check_shape("states", states, (None, None))
    check_same_shape("states", states, "final", final)
    check_count("states", len(states))
    check_finite("states", states)
    check_finite("final", final)
    check_in_range("l2", l2, low=0.0, open_low=True, open_high=True)
    h, change = states.detach().double(), (final - states).detach().double()
    center, shift = h.mean(0), change.mean(0)
    moved = h - center
    gram = moved.mT @ moved / len(h)
    gram.diagonal().add_(l2)
    A = torch.linalg.solve(gram, moved.mT @ (change - shift) / len(h))
    made = Translator(h.shape[1], device=states.device, dtype=states.dtype)
    with torch.no_grad():
        made.weight.copy_(A)
        made.bias.copy_(shift - center @ A)
    return made


def tune_translator(
    translator: Translator,
    model: Decoder,
    states: Float[Tensor, "n dim"],
    final: Float[Tensor, "n dim"],
    *,
    steps: int,
    generator: torch.Generator,
    batch_size: int = 128,
    lr: float = 1e-3,
) -> list[float]:
    r"""Train a translator, in place, to predict what the model predicts: the tuned lens.

    .. math:: \frac1n\sum_i \mathrm{KL}\big(p(\cdot \mid h_i^L)\,\|\,
        p(\cdot \mid h_i + h_i A + b)\big)

    Args:
        translator: What is trained.
        model: The decoder, which stays as it is.
        states: :math:`h_i`, from one depth.
        final: :math:`h_i^L`, before the final norm.
        steps: Steps of Adam.
        generator: Draws the batches.
        batch_size: Tokens in a step, at most.
        lr: Learning rate at the start; it falls to 0 in a straight line.

    Returns:
        The loss of each step, in nats, before the step.

    Raises:
        ValueError: If shapes or counts do not fit.

    References:
        Belrose et al. 2023, arXiv:2303.08112.

    Book: :doc:`/book/trust/interpretability`
    """
    _check_pre(model)
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    check_shape("states", states, (None, model.config.dim))
    check_same_shape("states", states, "final", final)
    check_count("states", len(states))
    rule = Adam(translator.parameters(), lr=lr)
    losses = []
    frozen = [p for p in model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        for step in range(steps):
            for group in rule.param_groups:
                group["lr"] = lr * (1 - step / steps)
            drawn = torch.randint(
                len(states), (batch_size,), generator=generator, device=generator.device
            ).to(states.device)
            with torch.no_grad():
                target = lens_logits(model, final[drawn]).log_softmax(-1)
            with torch.enable_grad():
                told = lens_logits(model, translator(states[drawn].detach())).log_softmax(-1)
                loss = (target.exp() * (target - told)).sum(-1).mean()
                grads = torch.autograd.grad(loss, list(translator.parameters()))
            for p, grad in zip(translator.parameters(), grads, strict=True):
                p.grad = grad
            rule.step()
            losses.append(float(loss.detach()))
    finally:
        for p in frozen:
            p.requires_grad_(True)
        for p in translator.parameters():
            p.grad = None
    return losses


class LogitParts(NamedTuple):
    """What each part of a decoder adds to a difference of logits.

    Attributes:
        embedded: By the embeddings, (batch,).
        heads: By each head, (layers, batch, heads).
        feed_forward: By each feed-forward layer, (layers, batch).
        biases: By biases of the attention outputs and of the final norm, (batch,).
        total: The difference itself, as the model computes it, (batch,).
    """

    embedded: Float[Tensor, " batch"]
    heads: Float[Tensor, "layers batch heads"]
    feed_forward: Float[Tensor, "layers batch"]
    biases: Float[Tensor, " batch"]
    total: Float[Tensor, " batch"]


def direct_logits(
    model: Decoder,
    ids: Integer[Tensor, "batch n"],
    *,
    token: Integer[Tensor, " batch"],
    other: Integer[Tensor, " batch"],
) -> LogitParts:
    r"""Split the difference of two logits at the last position into what each part writes.

    With the scale of the final norm held at its value, logits are linear in the stream, and the
    stream is a sum:

    .. math:: z_a - z_b = \sum_{c} \frac{h_c}{\sigma} \odot \gamma \cdot (W_{U,a} - W_{U,b})

    Args:
        model: A decoder with norms before its parts and attention of the usual kind.
        ids: Token ids without padding.
        token: :math:`a`, one for each text.
        other: :math:`b`.

    Returns:
        The parts; without the total they add up to it.

    Raises:
        ValueError: If the model has no final norm, or attention of another kind.

    Numerics:
        The scale is that of the *final* state for all parts, unlike in :func:`lens_logits`. What a
        part does through later ones is not seen.

    References:
        Elhage et al. 2021, https://transformer-circuits.pub/2021/framework/index.html.

    Book: :doc:`/book/trust/interpretability`
    """
    _check_pre(model)
    norm = model.final_norm
    if not isinstance(norm, RMSNorm | LayerNorm):
        raise ValueError(f"the final norm must be RMSNorm or LayerNorm, got {type(norm).__name__}")
    layers = range(len(model.blocks))
    attention: list[MultiHeadAttention] = []
    for block in model.blocks:
        if not isinstance(block.attention, MultiHeadAttention):
            raise ValueError(
                f"attention must be MultiHeadAttention, got {type(block.attention).__name__}"
            )
        attention.append(block.attention)
    check_shape("token", token, (ids.shape[0],))
    check_shape("other", other, (ids.shape[0],))
    read = ["embedded", "logits", f"blocks.{layers[-1]}.stream"]
    read += ["blocks.*.attention.heads", "blocks.*.feed_forward_out"]
    with torch.no_grad(), watch(model, read=read) as seen:
        model(ids, last=1)
        final = seen[f"blocks.{layers[-1]}.stream"][:, -1]
        high = wide_dtype(final.dtype)
        last = final.to(high)
        u = (model.head.weight[token] - model.head.weight[other]).to(high)
        u = u * model.config.logit_scale
        centered = isinstance(norm, LayerNorm)
        spread = last - last.mean(-1, keepdim=True) if centered else last
        scale = (spread.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        way = u * norm.weight.to(high) / scale
        if centered:  # centering a part, or the direction, is the same
            way = way - way.mean(-1, keepdim=True)

        def told(part: Tensor) -> Tensor:
            return (part.to(high) * way).sum(-1)

        heads, fed = [], []
        biases = torch.zeros_like(told(last))
        for index in layers:
            layer = attention[index]
            Z = seen[f"blocks.{index}.attention.heads"][:, :, -1]
            wrote = torch.einsum("bhv,hvd->bhd", Z.to(high), layer.output_matrix.to(high))
            heads.append((wrote * way[:, None]).sum(-1))
            if layer.out.bias is not None:
                biases = biases + told(layer.out.bias)
            fed.append(told(seen[f"blocks.{index}.feed_forward_out"][:, -1]))
        shift = getattr(norm, "bias", None)
        if shift is not None:
            biases = biases + (u * shift.to(high)).sum(-1)
        z = seen["logits"][:, -1].to(high)
        total = z.gather(1, token[:, None]) - z.gather(1, other[:, None])
        embedded = told(seen["embedded"][:, -1])
        return LogitParts(embedded, torch.stack(heads), torch.stack(fed), biases, total[:, 0])
