r"""One loop that learns from rewards: write, judge, compare, update.

It owns no trainer class: what it does at a step is calls of the functions beside it. All
random numbers of a step come from the seed and the number of the step, so a run that goes on from
a checkpoint, or that several processes share, writes the same texts as one that does not.
"""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Integer
from torch import Tensor, nn

from companion.core import (
    Checkpoints,
    Progress,
    average_,
    check_count,
    check_in_range,
    check_shape,
    parallelize,
)
from companion.core.parallel import is_parallel, world_size
from companion.core.training import _reducing
from companion.frontiers.reinforcement._advantages import grpo_advantages
from companion.frontiers.reinforcement._checks import Normalize, check_normalize
from companion.frontiers.reinforcement._kl import kl_estimate
from companion.frontiers.reinforcement._losses import clipped_share, grpo_loss
from companion.frontiers.reinforcement._samples import Samples, write_samples
from companion.frontiers.reinforcement._scores import completion_scores
from companion.transformer.block import Decoder

__all__ = ["ReinforceLog", "Reward", "reinforce"]

#: Takes, for each answer, the number of its prompt and its tokens, and returns its reward.
Reward = Callable[[list[int], list[list[int]]], "Sequence[float] | Tensor"]

#: What is watched at each step, all of it before the update of that step.
WATCHED = (
    "reward",
    "silent",
    "kl",
    "entropy",
    "length",
    "ended",
    "clipped",
    "apart",
    "loss",
    "grad_norm",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class ReinforceLog:
    r"""What a run leaves behind: a number for each step, float64, shape ``(steps,)``.

    With several processes each is the mean over all of them.

    Attributes:
        reward: Mean reward, without any penalty.
        silent: Share of groups whose rewards are all equal: they teach nothing, or only the price.
        kl: Divergence from the reference, nats a text, as the mean sum of ``k3`` over its tokens;
            NaN without a reference.
        entropy: Of the policy, nats a token.
        length: Tokens of an answer, its end included.
        ended: Share of answers that ended, and were not cut off.
        clipped: Share of tokens that lost their gradient to clipping in the last update.
        apart: Mean distance of the log-probability at writing from that at learning, nats a token:
            0 but for rounding, or the sampler is not the policy.
        loss: Of the first update.
        grad_norm: Of the first update, before clipping.
        seconds: Wall time of the whole run, that before an interruption included.
    """

    reward: Tensor
    silent: Tensor
    kl: Tensor
    entropy: Tensor
    length: Tensor
    ended: Tensor
    clipped: Tensor
    apart: Tensor
    loss: Tensor
    grad_norm: Tensor
    seconds: float


class _Curves:
    """The numbers of all steps so far, and what the run was asked to do."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.rows: list[list[float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked, "rows": torch.tensor(self.rows, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.asked.items():
            before = state["asked"].get(name)
            if before != value:
                raise ValueError(
                    f"the checkpoint is of a run with another {name} ({before}, now {value}): "
                    "choose another directory, or the same settings"
                )
        self.rows = state["rows"].tolist()


def reinforce(
    model: Decoder,
    prompts: Sequence[Integer[Tensor, " _"]],
    reward: Reward,
    *,
    steps: int,
    tokens: int,
    stop: Sequence[int],
    prompts_per_step: int = 8,
    group: int = 8,
    lr: float = 1e-5,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    schedule: Callable[[int], float] | None = None,
    temperature: float = 1.0,
    advantages: Callable[[Tensor], Tensor] = grpo_advantages,
    updates: int = 1,
    clip: float | tuple[float, float] = 0.2,
    normalize: Normalize = "token",
    beta: float = 0.0,
    penalty: Literal["reward", "loss"] = "reward",
    reference: Decoder | Literal["start"] | None = "start",
    clip_norm: float | None = 1.0,
    batch_size: int = 64,
    parallel: Literal["none", "ddp", "fsdp"] = "none",
    autocast: torch.dtype | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    save_every: int = 50,
    on_step: Callable[[int, dict[str, float]], object] | None = None,
) -> ReinforceLog:
    r"""Train a language model on rewards of what it writes.

    A step draws ``prompts_per_step`` prompts, writes ``group`` answers to each, asks for their
    rewards, turns these into advantages, and updates the policy ``updates`` times by
    :func:`grpo_loss`.

    Args:
        model: The policy, on the device of this process. It is trained in place.
        prompts: Token ids of each prompt; they come in random order, all before any comes again.
        reward: Called once a step with the numbers of the prompts and the tokens of the answers of
            this process, without the tokens that ended them. Answers to one prompt are neighbors.
            It must not depend on anything random.
        steps: Rounds of writing and learning, those before an interruption included.
        tokens: The longest answer.
        stop: Tokens that end one.
        prompts_per_step: Over all processes, which must share them evenly.
        group: Answers to each prompt.
        lr: Learning rate of AdamW without decay, which is the optimizer by default.
        optimizer: Makes another one of the parameters; ``lr`` is then its own affair.
        schedule: Maps the step 0, 1, ... to a factor of the learning rate.
        temperature: At which answers are written, and scored.
        advantages: Maps rewards of shape ``(prompts, group)`` to advantages; for example
            :func:`rloo_advantages`.
        updates: Updates by each round of answers. From the second on the policy is not the one
            that wrote, and clipping begins to act.
        clip: As in :func:`grpo_loss`.
        normalize: As in :func:`grpo_loss`; ``"length"`` divides by ``tokens``.
        beta: Price :math:`\beta` of a nat of divergence from the reference.
        penalty: Whether it is taken from the reward of a text, which is right
            (:func:`penalized_rewards`), or stands in the loss as ``k3``, as in GRPO. Advantages
            that divide by the spread of a group, as the default does, divide the price as well;
            the optimum of :func:`kl_optimum` needs some that do not.
        reference: The policy not to stray from, whole on every process. By default a copy of the
            model as it is given; None leaves it, and the column ``kl``, out.
        clip_norm: Largest norm of the gradient.
        batch_size: Texts that are scored at once; less needs less memory, and changes nothing.
        parallel: How processes of ``torchrun`` work together, as
            :func:`companion.core.parallelize` calls it. With ``"fsdp"`` each process writes with a
            whole copy of the weights, which is renewed at each step.
        autocast: ``torch.bfloat16`` computes the losses in mixed precision.
        seed: All randomness comes from it.
        directory: Where checkpoints are written, and a run goes on that finds one. Call again with
            the model as it was at the start.
        save_every: Steps between checkpoints.
        on_step: Called after each step on each process with the number of steps done and what is
            watched.

    Returns:
        What was watched.

    Raises:
        ValueError: If a setting is out of its domain, or the checkpoint belongs to another run.
        FloatingPointError: If a loss is not finite.

    Numerics:
        Loss and gradient do not depend on ``batch_size`` or on the number of processes but for
        rounding. A run that was interrupted and continued agrees to the last bit with one that was
        not.

    References:
        Shao et al. 2024, arXiv:2402.03300, algorithm 1.

    Book: :doc:`/book/frontiers/reinforcement`

    Example:
        >>> from companion.transformer.block import TransformerConfig
        >>> config = TransformerConfig(vocab=5, dim=12, layers=1, heads=3, ff_dim=31, context=9)
        >>> model = Decoder(config)
        >>> def threes(numbers, answers):
        ...     return [float(answer.count(3)) for answer in answers]
        >>> log = reinforce(model, [torch.tensor([1])], threes, steps=2, tokens=3, stop=[0], lr=0.1)
        >>> log.reward.shape
        torch.Size([2])
    """
    world = world_size()
    _check(steps, prompts, prompts_per_step, updates, batch_size, world)
    check_count("group", group)
    check_normalize(normalize, tokens if normalize == "length" else None)
    check_in_range("beta", beta, low=0.0, open_high=True)
    if penalty not in ("reward", "loss"):
        raise ValueError(f'penalty must be "reward" or "loss", got {penalty!r}')
    if beta > 0 and reference is None:
        raise ValueError("beta > 0 is a price of leaving the reference: pass reference=")
    judge = copy.deepcopy(model).eval() if reference == "start" else reference
    if isinstance(judge, nn.Module):
        judge.requires_grad_(False)
    sampler = copy.deepcopy(model).requires_grad_(False) if parallel == "fsdp" else model
    rank = dist.get_rank() if world > 1 else 0
    module = parallelize(_Policy(model), parallel)
    parameters = [p for p in module.parameters() if p.requires_grad]
    update = (
        torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
        if optimizer is None
        else optimizer(parameters)
    )
    base_rates = [group_["lr"] for group_ in update.param_groups]
    asked = {
        "seed": seed,
        "group": group,
        "prompts_per_step": prompts_per_step,
        "tokens": tokens,
        "temperature": temperature,
        "updates": updates,
        "normalize": normalize,
        "beta": beta,
        "penalty": penalty,
        "number of prompts": len(prompts),
        "reference": _mark(judge),
    }
    curves = _Curves(asked)
    checkpoints = None
    first, before = 0, 0.0
    if directory is not None:
        checkpoints = Checkpoints(
            directory, model=model, every=save_every, state={"curves": curves}
        )
        found = checkpoints.load(update, steps=steps)
        if found is not None:
            first, before = found.step, found.seconds
    share = prompts_per_step // world
    start = time.perf_counter()
    for step in range(first, steps):
        chosen = _numbers(len(prompts), prompts_per_step, step, seed)
        if sampler is not model:
            _renew(sampler, model)
        mode = sampler.training
        sampler.eval()
        made = write_samples(
            sampler,
            [prompts[number] for number in chosen],
            group=group,
            tokens=tokens,
            stop=stop,
            temperature=temperature,
            generator=_generator(seed, "answers", step),
            rows=(rank * share, (rank + 1) * share),
        )
        sampler.train(mode)
        numbers = [n for n in chosen[rank * share : (rank + 1) * share] for _ in range(group)]
        paid = torch.as_tensor(reward(numbers, made.answers()), dtype=torch.float64)
        check_shape("what reward returns", paid, (len(numbers),))
        paid = paid.to(made.ids.device)
        parts = [slice(a, a + batch_size) for a in range(0, len(numbers), batch_size)]
        doubts = None
        if isinstance(judge, nn.Module):
            with torch.no_grad():
                found_parts = [_scores(judge, made, p, temperature).log_probs for p in parts]
            doubts = torch.cat(found_parts)
        old = None
        if updates > 1:
            with torch.no_grad():
                wanted = [(made, p, temperature, None) for p in parts]
                old = torch.cat([module(batch)[0] for batch in wanted])
        net = paid
        if beta > 0 and penalty == "reward" and doubts is not None:
            away = made.log_probs if old is None else old
            net = paid - beta * (away - doubts).double().sum(1)
        better = advantages(net.view(share, group)).reshape(-1).to(made.log_probs.dtype)
        in_loss = beta if penalty == "loss" else 0.0
        # Tokens of a process on average, so that a mean over processes is one over tokens.
        count = average_(made.scored.sum().double())
        total: Any = len(numbers)
        if normalize == "token":
            total = count.to(made.log_probs.dtype)
        settings = {
            "clip": clip,
            "normalize": normalize,
            "length": tokens if normalize == "length" else None,
            "beta": in_loss,
            "total": total,
        }
        row = dict.fromkeys(WATCHED, math.nan)
        if schedule is not None:
            for group_, rate in zip(update.param_groups, base_rates, strict=True):
                group_["lr"] = rate * schedule(step)
        for turn in range(updates):
            update.zero_grad(set_to_none=True)
            seen = []
            for index, part in enumerate(parts):
                terms = {
                    "advantages": better[part],
                    "old": None if old is None else old[part],
                    "reference": doubts[part] if doubts is not None and in_loss > 0 else None,
                    **settings,
                }
                device = made.ids.device.type
                with (
                    _reducing(module, index + 1 == len(parts)),
                    torch.autocast(device, dtype=autocast, enabled=autocast is not None),
                ):
                    loss, watched = module((made, part, temperature, terms))
                    loss.backward()
                seen.append(watched)
            norm = _clip(parameters, clip_norm)
            columns = [torch.cat(column) for column in zip(*(w[:2] for w in seen), strict=True)]
            lost = torch.stack([w[2] for w in seen]).sum()
            if is_parallel(module):
                average_(lost)
            if not math.isfinite(float(lost)):
                raise FloatingPointError(
                    f"the loss at step {step} is {float(lost)}: lower the learning rate, or look "
                    "for rewards or log-probabilities that are not finite"
                )
            update.step()
            if turn == 0:
                row |= _watch(made, paid.view(share, group), columns, doubts, count)
                row |= {"loss": float(lost), "grad_norm": norm, "clipped": 0.0}
            if turn == updates - 1 and old is not None:
                lost_ones = clipped_share(columns[0], old, better, made.scored, clip=clip)
                row["clipped"] = float(lost_ones * made.scored.sum() / count)
        mean = made.log_probs.new_tensor([row[name] for name in WATCHED], dtype=torch.float64)
        average_(mean)
        curves.rows.append(mean.tolist())
        if on_step is not None:
            on_step(step + 1, dict(zip(WATCHED, mean.tolist(), strict=True)))
        if checkpoints is not None and ((step + 1) % save_every == 0 or step + 1 == steps):
            for group_, rate in zip(update.param_groups, base_rates, strict=True):
                group_["lr"] = rate
            seconds = before + time.perf_counter() - start
            checkpoints.save(Progress(step + 1, seconds=seconds), update)
    for group_, rate in zip(update.param_groups, base_rates, strict=True):
        group_["lr"] = rate
    table = torch.tensor(curves.rows, dtype=torch.float64).T
    return ReinforceLog(
        **dict(zip(WATCHED, table, strict=True)), seconds=before + time.perf_counter() - start
    )


def _check(
    steps: int,
    prompts: Sequence[Tensor],
    prompts_per_step: int,
    updates: int,
    batch_size: int,
    world: int,
) -> None:
    check_count("steps", steps)
    check_count("prompts", len(prompts))
    check_count("prompts_per_step", prompts_per_step)
    check_count("updates", updates)
    check_count("batch_size", batch_size)
    if prompts_per_step % world:
        raise ValueError(
            f"prompts_per_step is {prompts_per_step}, which {world} processes cannot share evenly"
        )


def _generator(seed: int, what: str, number: int) -> torch.Generator:
    """A source of its own for everything that is drawn, known from its name."""
    told = hashlib.sha256(f"{seed} {what} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(told[:4], "big"))


def _numbers(count: int, wanted: int, step: int, seed: int) -> list[int]:
    """The prompts of a step: one order after another, each of all prompts."""
    places = range(step * wanted, (step + 1) * wanted)
    orders = {
        epoch: torch.randperm(count, generator=_generator(seed, "order", epoch)).tolist()
        for epoch in {place // count for place in places}
    }
    return [orders[place // count][place % count] for place in places]


def _mark(judge: nn.Module | None) -> str:
    """A short name of the weights of the reference."""
    if judge is None:
        return "none"
    told = hashlib.sha256()
    for parameter in judge.parameters():
        told.update(parameter.detach().double().sum().cpu().numpy().tobytes())
    return told.hexdigest()[:16]


def _renew(sampler: nn.Module, model: nn.Module) -> None:
    """Copy sharded weights into a whole model."""
    with torch.no_grad():
        for mine, its in zip(sampler.parameters(), model.parameters(), strict=True):
            mine.copy_(its.full_tensor() if hasattr(its, "full_tensor") else its)


def _scores(model: Decoder, made: Samples, part: slice, temperature: float) -> Any:
    real = made.real[part]
    return completion_scores(
        model,
        made.ids[part],
        prompt=made.prompt,
        real=None if bool(real.all()) else real,
        scored=made.scored[part],
        temperature=temperature,
    )


class _Policy(nn.Module):
    """The policy with all that is asked of it as one module: what several processes train."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: tuple[Samples, slice, float, dict[str, Any] | None]) -> Any:
        """Score a part of the answers; with terms, also compute its share of the loss."""
        made, part, temperature, terms = batch
        found = _scores(self.model, made, part, temperature)
        if terms is None:
            return tuple(found)
        loss = grpo_loss(
            found.log_probs,
            terms["advantages"].to(found.log_probs.dtype),
            made.scored[part],
            old_log_probs=terms["old"],
            reference=terms["reference"],
            **{name: terms[name] for name in ("clip", "normalize", "length", "beta", "total")},
        )
        return loss, (found.log_probs.detach(), found.entropy, loss.detach())


def _clip(parameters: Iterable[nn.Parameter], clip_norm: float | None) -> float:
    limit = math.inf if clip_norm is None else clip_norm
    norm: Any = torch.nn.utils.clip_grad_norm_(parameters, limit)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _watch(
    made: Samples, paid: Tensor, columns: list[Tensor], doubts: Tensor | None, count: Tensor
) -> dict[str, float]:
    """What one must look at, of the answers of this process."""
    log_probs, entropy = columns
    apart = (log_probs - made.log_probs).abs().masked_fill(~made.scored, 0.0)
    found = {
        "reward": paid.mean(),
        "silent": (paid.amax(1) == paid.amin(1)).double().mean(),
        "entropy": entropy.sum() / count,
        "length": made.scored.sum(1).double().mean(),
        "ended": made.ended.double().mean(),
        "apart": apart.sum() / count,
    }
    if doubts is not None:
        away = kl_estimate(log_probs, doubts, estimator="k3").masked_fill(~made.scored, 0.0)
        found["kl"] = away.sum(1).mean()
    return {name: float(value) for name, value in found.items()}
