r"""What a policy says of texts: log-probabilities of given tokens, without a matrix of logits.

A policy-gradient loss weighs each token by itself, so its gradient cannot be finished in the
forward pass, as that of a mean can
(:func:`companion.foundations.cross_entropy.chunked_cross_entropy`). Here logits are formed a chunk
of tokens at a time, and once more in the backward pass.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import (
    check_count,
    check_floating,
    check_ids,
    check_in_range,
    check_shape,
    wide_dtype,
)
from companion.transformer.block import Decoder

__all__ = ["TokenScores", "completion_scores", "head_log_probs"]


class TokenScores(NamedTuple):
    r"""What a policy says of the tokens of some texts.

    Attributes:
        log_probs: :math:`\log \pi(a_t \mid s_t)`, in nats.
        entropy: Entropy of the policy at the same places, in nats, without a gradient.
    """

    log_probs: Tensor
    entropy: Tensor


def head_log_probs(
    hidden: Float[Tensor, "tokens d"],
    weight: Float[Tensor, "vocab d"],
    targets: Integer[Tensor, " tokens"],
    *,
    temperature: float = 1.0,
    chunk_size: int = 256,
) -> TokenScores:
    r"""Score the tokens that follow hidden states, a chunk at a time.

    .. math:: \log \pi(a_t \mid s_t) = \frac{(h W^\top)_{t a_t}}{T}
        - \log \sum_v e^{(h W^\top)_{tv} / T}

    Args:
        hidden: Last hidden states :math:`h`.
        weight: The output layer :math:`W`, as ``nn.Linear`` holds it.
        targets: The tokens :math:`a`.
        temperature: :math:`T > 0`. Use the one that the tokens were drawn with: another one is
            another policy.
        chunk_size: Tokens whose logits are held at a time.

    Returns:
        Log-probabilities and entropies, float32 or better.

    Raises:
        ValueError: If shapes, dtypes, ids or settings do not fit.

    Numerics:
        Forward and backward together are four matrix products of :math:`2 N d |V|` operations, one
        more than with all logits in memory. It can be differentiated once.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> made = head_log_probs(torch.zeros(3, 2), torch.zeros(5, 2), torch.tensor([0, 4, 1]))
        >>> made.log_probs, made.entropy  # -log 5 and log 5
        (tensor([-1.6094, -1.6094, -1.6094]), tensor([1.6094, 1.6094, 1.6094]))
    """
    check_floating("hidden", hidden)
    check_shape("hidden", hidden, (None, None))
    check_shape("weight", weight, (None, hidden.shape[1]))
    if not hidden.is_meta and torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)  # as a matrix product would do
    if weight.dtype != hidden.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}: convert one")
    check_shape("targets", targets, (hidden.shape[0],))
    check_ids("targets", targets, weight.shape[0])
    check_in_range("temperature", temperature, low=0.0, open_low=True, open_high=True)
    check_count("chunk_size", chunk_size)
    scores, entropy, _ = _HeadLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets.long(), 1.0 / temperature, chunk_size
    )
    return TokenScores(scores, entropy)


class _HeadLogProbs(torch.autograd.Function):
    """Keeps the log of the normalizer of each row, and forms the logits twice."""

    @staticmethod
    def forward(
        hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, chunk_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        high = wide_dtype(hidden.dtype)
        size = (hidden.shape[0],)
        picked, entropy, norm = (
            torch.empty(size, dtype=high, device=hidden.device) for _ in range(3)
        )
        for start in range(0, hidden.shape[0], chunk_size):
            rows = slice(start, start + chunk_size)
            z = (hidden[rows] @ weight.T).to(high)
            if scale != 1.0:
                z = z * scale
            at = z.gather(1, targets[rows, None]).squeeze(1)
            shift = z.amax(1, keepdim=True)
            # In place: a chunk of logits is the largest thing here.
            z.sub_(shift)
            e = z.exp()
            total = e.sum(1)
            lse = shift.squeeze(1) + total.log()
            norm[rows] = lse
            picked[rows] = at - lse
            # 0 times minus infinity is nothing that can be drawn.
            entropy[rows] = total.log() - e.mul_(z.clamp_(min=-1e30)).sum(1) / total
        return picked, entropy, norm

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        hidden, weight, targets, ctx.scale, ctx.chunk_size = inputs
        ctx.save_for_backward(hidden, weight, targets, output[2])
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        hidden, weight, targets, norm = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        high = norm.dtype
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=high, device=weight.device)
        for start in range(0, hidden.shape[0], ctx.chunk_size):
            rows = slice(start, start + ctx.chunk_size)
            h, g = hidden[rows], grad[rows, None].to(high)
            z = (h @ weight.T).to(high)
            if ctx.scale != 1.0:
                z.mul_(ctx.scale)
            # d log p / d z = one-hot - p
            z.sub_(norm[rows, None]).exp_().mul_(-g)
            z.scatter_add_(1, targets[rows, None], g)
            if ctx.scale != 1.0:
                z.mul_(ctx.scale)
            z = z.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[rows] = z @ weight
            if wants_weight:
                if z.dtype == high:
                    torch.addmm(d_weight, z.T, h, out=d_weight)
                else:
                    d_weight += z.T @ h
        return d_hidden, d_weight.to(weight.dtype) if wants_weight else None, None, None, None


def completion_scores(
    model: Decoder,
    ids: Integer[Tensor, "batch n"],
    *,
    prompt: int,
    real: Bool[Tensor, "batch n"] | None = None,
    scored: Bool[Tensor, "batch written"] | None = None,
    temperature: float = 1.0,
    chunk_size: int = 256,
) -> TokenScores:
    r"""Score what was written after prompts: :math:`\log \pi(y_t \mid x, y_{<t})`.

    The model reads prompt and completion once; the place before a token predicts it.

    Args:
        model: The policy.
        ids: Prompts and completions, a row a text. All completions begin in one column, so pad
            shorter prompts on the left.
        prompt: How many columns are the prompt, 1 or more.
        real: ``True`` for tokens that may be read, ``False`` for padding; all by default.
        scored: ``True`` for the tokens of completions that are wanted, such as those up to the end
            token; all by default. The output layer sees no others.
        temperature: As in :func:`head_log_probs`.
        chunk_size: As in :func:`head_log_probs`.

    Returns:
        Log-probabilities and entropies of the written tokens, shape ``(batch, n - prompt)``; 0
        where they are not scored.

    Raises:
        ValueError: If shapes do not fit, or there is no prompt or no completion.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=31, context=9)
        >>> texts = torch.tensor([[1, 2, 3, 4, 5]])
        >>> completion_scores(Decoder(config), texts, prompt=2).log_probs.shape
        torch.Size([1, 3])
    """
    check_shape("ids", ids, (None, None))
    n = ids.shape[1]
    check_count("prompt", prompt, high=max(n - 1, 0))
    written = ids[:, prompt:]
    if scored is None:
        scored = torch.ones_like(written, dtype=torch.bool)
    check_shape("scored", scored, tuple(written.shape))
    if scored.dtype != torch.bool:
        raise ValueError(f"scored must be boolean, True for tokens to score, got {scored.dtype}")
    if real is not None:
        check_shape("real", real, tuple(ids.shape))
        real = real[:, :-1]
    hidden = model.hidden(ids[:, :-1], real=real)[:, prompt - 1 :]
    if scored.is_meta:  # how many are scored is not known there
        found = head_log_probs(
            hidden.flatten(0, 1), model.head.weight, written.flatten(), chunk_size=chunk_size
        )
        return TokenScores(*(part.view(written.shape) for part in found))
    found = head_log_probs(
        hidden[scored],
        model.head.weight,
        written[scored],
        temperature=temperature,
        chunk_size=chunk_size,
    )
    shaped = (part.new_zeros(written.shape).masked_scatter(scored, part) for part in found)
    return TokenScores(*shaped)
