r"""Answers that a policy writes: several to each prompt, with what it thought of each token."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from companion.core import check_count, check_in_range, check_shape, rand, wide
from companion.models import History, generate
from companion.transformer.block import Decoder

__all__ = ["Samples", "pad_prompts", "write_samples"]


class Samples(NamedTuple):
    r"""Answers to some prompts. Those to one prompt are neighbors.

    Attributes:
        ids: Prompts, padded on the left, and what was written: ``(batch, n)``.
        prompt: How many columns are the prompt.
        real: ``True`` for tokens that may be read, ``False`` for the padding: ``(batch, n)``.
        scored: ``True`` for the tokens that the policy chose, the end token included, and
            ``False`` after it: ``(batch, written)``.
        log_probs: What the policy gave to each when it drew it, in nats; 0 after the end.
        ended: Which answers have ended, and were not cut off: ``(batch,)``.
    """

    ids: Tensor
    prompt: int
    real: Tensor
    scored: Tensor
    log_probs: Tensor
    ended: Tensor

    def answers(self) -> list[list[int]]:
        """Return the tokens of each answer, without the one that ended it.

        Returns:
            A list of token ids for each row.
        """
        written = self.ids[:, self.prompt :].tolist()
        lengths = (self.scored.sum(1) - self.ended.long()).tolist()
        return [row[:length] for row, length in zip(written, lengths, strict=True)]


def pad_prompts(
    prompts: Sequence[Integer[Tensor, " _"]], *, pad: int = 0
) -> tuple[Integer[Tensor, "prompts longest"], Bool[Tensor, "prompts longest"]]:
    """Set prompts of several lengths flush right.

    Args:
        prompts: Token ids of each, one token at least.
        pad: What stands on the left of shorter ones; nobody reads it.

    Returns:
        Ids, and where they are tokens.

    Raises:
        ValueError: If there is no prompt, or one is empty or not of whole numbers.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> pad_prompts([torch.tensor([3, 4]), torch.tensor([5])])[0]
        tensor([[3, 4],
                [0, 5]])
    """
    check_count("prompts", len(prompts))
    for number, row in enumerate(prompts):
        check_shape(f"prompt {number}", row, (None,))
        check_count(f"tokens of prompt {number}", len(row))
        if row.is_floating_point():
            raise ValueError(f"prompt {number} must hold token ids, got {row.dtype}")
    longest = max(len(row) for row in prompts)
    ids = prompts[0].new_full((len(prompts), longest), pad)
    real = torch.zeros_like(ids, dtype=torch.bool)
    for line, kept, row in zip(ids, real, prompts, strict=True):
        line[longest - len(row) :] = row
        kept[longest - len(row) :] = True
    return ids, real


def write_samples(
    model: Decoder,
    prompts: Sequence[Integer[Tensor, " _"]],
    *,
    group: int,
    tokens: int,
    stop: Sequence[int],
    generator: torch.Generator,
    temperature: float = 1.0,
    rows: tuple[int, int] | None = None,
) -> Samples:
    r"""Let a policy write several answers to each prompt.

    Args:
        model: The policy. It is left in its mode: call ``eval()`` first where it has dropout.
        prompts: Token ids of each prompt.
        group: Answers to each.
        tokens: The longest answer.
        stop: Tokens that end one.
        generator: The source of randomness: one number for each token of each answer, drawn before
            anything is written.
        temperature: :math:`T > 0` of the softmax that tokens are drawn from. There is no filter of
            unlikely tokens: what is drawn has the log-probability that :func:`completion_scores`
            gives at this temperature.
        rows: First prompt that is written here, and one after the last, where several processes
            share the work; the others' numbers are drawn and put away, so that together they write
            what one process would.

    Returns:
        The answers.

    Raises:
        ValueError: If a setting is out of its domain, or prompt and answer exceed the context.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=7, dim=12, layers=1, heads=3, ff_dim=31, context=9)
        >>> g = torch.Generator().manual_seed(0)
        >>> made = write_samples(
        ...     Decoder(config), [torch.tensor([1, 2])], group=3, tokens=4, stop=[0], generator=g
        ... )
        >>> made.ids.shape[0], len(made.answers())
        (3, 3)
    """
    check_count("group", group)
    check_count("tokens", tokens)
    check_in_range("temperature", temperature, low=0.0, open_low=True, open_high=True)
    low, high = (0, len(prompts)) if rows is None else rows
    if not 0 <= low < high <= len(prompts):
        raise ValueError(f"rows must lie within the {len(prompts)} prompts, got {rows}")
    ids, real = pad_prompts(prompts)
    longest = ids.shape[1]
    if longest + tokens > model.config.context:
        raise ValueError(
            f"{longest} tokens of a prompt and {tokens} of an answer exceed the model's context of "
            f"{model.config.context}: shorten one of them"
        )
    device = model.head.weight.device
    points = rand(tokens, len(prompts), group, generator=generator, dtype=torch.float64)
    points = points[:, low:high].reshape(tokens, -1).to(device)
    ids = ids[low:high].repeat_interleave(group, 0).to(device)
    real = real[low:high].repeat_interleave(group, 0).to(device)
    pick = _Recorder(points, temperature)
    padded = not bool(real.all())
    written = generate(
        model, ids, tokens=tokens, pick=pick, stop=stop, real=real if padded else None
    )
    ends = torch.isin(written, torch.tensor(list(stop), dtype=written.dtype, device=device))
    after = ends.long().cumsum(1) - ends.long()
    scored = after == 0
    found = torch.stack(pick.found, 1).masked_fill(~scored, 0.0)
    return Samples(
        torch.cat([ids, written], 1),
        longest,
        torch.cat([real, torch.ones_like(scored)], 1),
        scored,
        found,
        ends.any(1),
    )


class _Recorder:
    """Draws by given uniform numbers, and keeps the log-probability of each draw."""

    def __init__(self, points: Float[Tensor, "tokens batch"], temperature: float) -> None:
        self.points = points
        self.temperature = temperature
        self.found: list[Tensor] = []

    def __call__(self, logits: Tensor, history: History, /) -> Tensor:
        log_p = (wide(logits) / self.temperature).log_softmax(-1)
        below = log_p.double().exp().cumsum(-1)
        total = below[:, -1:]
        point = self.points[len(self.found), :, None] * total
        # Strictly below the total, so that the interval found has a positive width.
        point = torch.minimum(point, torch.nextafter(total, total.new_zeros(())))
        chosen = torch.searchsorted(below, point, right=True)
        # A copy, for the loop computes in inference mode.
        self.found.append(log_p.gather(1, chosen).squeeze(1).clone())
        return chosen.squeeze(1)
