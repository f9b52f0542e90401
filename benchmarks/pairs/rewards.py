"""Losses of policies from hidden states on, beside those of trl."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side, close
from companion.frontiers.reinforcement import dpo_loss, grpo_loss, head_log_probs

ROWS, TOKENS, DIM, VOCAB = 8, 128, 576, 32_000


def _inputs(device: torch.device) -> SimpleNamespace:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, TOKENS, DIM, generator=g).to(device).requires_grad_()
    weight = (0.05 * torch.randn(VOCAB, DIM, generator=g)).to(device).requires_grad_()
    return SimpleNamespace(
        hidden=hidden,
        weight=weight,
        targets=torch.randint(VOCAB, (ROWS, TOKENS), generator=g).to(device),
        old=(-11 + 0.1 * torch.randn(ROWS, TOKENS, generator=g)).to(device),
        reference=(-11 + 0.1 * torch.randn(ROWS, TOKENS, generator=g)).to(device),
        advantages=torch.randn(ROWS, generator=g).to(device),
        real=torch.ones(ROWS, TOKENS, dtype=torch.bool, device=device),
    )


def _ours(device: torch.device, kind: str) -> Side:
    x = _inputs(device)

    def run() -> list[Tensor]:
        found = head_log_probs(x.hidden.flatten(0, 1), x.weight, x.targets.flatten())
        log_probs = found.log_probs.view(ROWS, TOKENS)
        if kind == "grpo":
            value = grpo_loss(
                log_probs,
                x.advantages,
                x.real,
                old_log_probs=x.old,
                reference=x.reference,
                beta=0.1,
            )
        else:
            value = dpo_loss(*log_probs.sum(1).chunk(2), *x.reference.sum(1).chunk(2)).loss
        return [value, *torch.autograd.grad(value, (x.hidden, x.weight))]

    return run


class _Accelerator:
    num_processes = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def gather(self, x: Any) -> Any:
        return x

    gather_for_metrics = gather

    def reduce(self, x: Any, reduction: str) -> Any:
        return x


class _Metrics(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        self[key] = _Metrics() if key in ("train", "eval") else []
        return self[key]


def _theirs(device: torch.device, kind: str) -> Side:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer

    x = _inputs(device)
    chunk = 32_768  # trl's own
    outputs = ("entropy",) if kind == "grpo" else ("entropy", "mean_logits", "is_top1")

    def score() -> Any:
        found = ChunkedLogProbFunction.apply(
            x.hidden.flatten(0, 1),
            x.weight,
            None,
            x.targets.flatten(),
            1.0,
            chunk,
            None,
            1.0,
            outputs,
        )
        return [None if part is None else part.view(ROWS, TOKENS) for part in found]

    shared = {
        "model": SimpleNamespace(training=True),
        "accelerator": _Accelerator(device),
        "aux_loss_enabled": False,
        "_metrics": _Metrics(),
    }
    if kind == "grpo":

        def scores(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
            log_probs, entropy = score()[:2]
            return log_probs, entropy.detach(), None

        stub = SimpleNamespace(
            **shared,
            _get_per_token_logps_and_entropies=scores,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level="token",
            beta=0.1,
            epsilon_low=0.2,
            epsilon_high=0.2,
            loss_type="grpo",
            use_vllm=False,
            current_gradient_accumulation_steps=1,
            args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
            _entropy_bonus_enabled=False,
        )
        inputs = {
            "prompt_ids": x.targets[:, :2],
            "prompt_mask": x.real[:, :2],
            "completion_ids": x.targets,
            "completion_mask": x.real.float(),
            "advantages": x.advantages,
            "old_per_token_logps": x.old,
            "ref_per_token_logps": x.reference,
        }

        def loss() -> Tensor:
            made: Tensor = GRPOTrainer._compute_loss(stub, None, inputs)
            return made
    else:
        stub = SimpleNamespace(
            **shared,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=["sigmoid"],
            loss_weights=[1.0],
            beta=0.1,
            label_smoothing=0.0,
            use_weighting=False,
            _total_train_tokens=0,
            _tp_size=1,
        )
        ids = torch.zeros(ROWS, TOKENS + 1, dtype=torch.long, device=device)
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "completion_mask": torch.ones_like(ids),
            "ref_chosen_logps": x.reference.sum(1)[: ROWS // 2],
            "ref_rejected_logps": x.reference.sum(1)[ROWS // 2 :],
        }

        def model(**_: Any) -> SimpleNamespace:
            names = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
            return SimpleNamespace(**dict(zip(names, score(), strict=True)))

        def loss() -> Tensor:
            made: Tensor = DPOTrainer._compute_loss(stub, model, batch, False)
            return made

    def run() -> list[Tensor]:
        value = loss()
        return [value, *torch.autograd.grad(value, (x.hidden, x.weight))]

    return run


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    for kind in ("grpo", "dpo"):
        yield Pair(
            name=f"rewards/{kind}",
            task=f"{kind.upper()}: loss and gradients of a head, {ROWS} texts of {TOKENS} tokens "
            f"x {DIM} x {VOCAB:,} words",
            peer=f"trl's {kind.upper()}Trainer, from its fused head on",
            ours=lambda device, kind=kind: _ours(device, kind),
            theirs=lambda device, kind=kind: _theirs(device, kind),
            same=close(1e-4),
            needs=["trl"],
            speed=1.0,
            memory=1.0,
            rounds=2,
            note="Both form the logits twice; trl's also takes what it logs.",
            devices=("cpu",),
        )
