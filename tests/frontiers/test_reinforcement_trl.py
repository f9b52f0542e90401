"""Losses and gradients equal to those of trl, whose trainers' own code runs here on our numbers."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from companion.frontiers.reinforcement import (
    dpo_loss,
    grpo_loss,
    head_log_probs,
    importance_weights,
    kto_loss,
    ppo_loss,
    simpo_loss,
)

B, T, VOCAB = 6, 7, 13


def same(ours, theirs, *leaves):
    """One loss, and one gradient with respect to each leaf."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    mine = torch.autograd.grad(ours, leaves, retain_graph=True)
    its = torch.autograd.grad(theirs, leaves)
    for slope, want in zip(mine, its, strict=True):
        assert float(want.abs().max()) > 1e-3  # not a comparison of zeros
        torch.testing.assert_close(slope, want, rtol=1e-12, atol=1e-13)


@pytest.fixture(scope="module")
def trl():
    """The trainers; their import is slow, and warns of what is none of our business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.cpo.cpo_trainer import CPOTrainer
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
        from trl.trainer.dpo_trainer import DPOTrainer
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.kto_trainer import KTOTrainer
        from trl.trainer.rloo_trainer import RLOOTrainer
    return SimpleNamespace(
        grpo=GRPOTrainer,
        dpo=DPOTrainer,
        kto=KTOTrainer,
        rloo=RLOOTrainer,
        cpo=CPOTrainer,
        head=ChunkedLogProbFunction,
    )


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Accelerator:
    """One process that gathers nothing."""

    num_processes = 1
    device = torch.device("cpu")

    @staticmethod
    def gather(x):
        return x

    gather_for_metrics = gather

    @staticmethod
    def reduce(x, reduction):
        return x


class Metrics(dict):
    """Keeps what a trainer logs, and gives an empty list for what is new."""

    def __missing__(self, key):
        self[key] = Metrics() if key in ("train", "eval") else []
        return self[key]


def texts():
    new = (-numbers(B, T).abs()).requires_grad_()
    old = new.detach() + 0.4 * numbers(B, T, seed=1)
    ref = new.detach() + 0.4 * numbers(B, T, seed=2)
    real = torch.arange(T) < torch.tensor([7, 1, 3, 5, 2, 6])[:, None]
    return new, old, ref, numbers(B, seed=3), real


def theirs_grpo(trainer, new, old, ref, advantages, real, **how):
    """The loss method of the trainer, which scores no model but our log-probabilities."""
    settings = {
        "use_bias_correction_kl": False,
        "delta": None,
        "steps_per_generation": 1,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
    } | how.pop("args", {})
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        epsilon_low=0.2,
        epsilon_high=0.2,
        loss_type="grpo",
        use_vllm=False,
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=11,
        accelerator=Accelerator(),
        args=SimpleNamespace(**settings),
        _entropy_bonus_enabled=False,
        _metrics=Metrics(),
    )
    weights = how.pop("weights", None)
    for name, value in how.items():
        assert hasattr(stub, name)
        setattr(stub, name, value)
    ids = torch.zeros(B, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :2],
        "prompt_mask": torch.ones(B, 2),
        "completion_ids": ids,
        "completion_mask": real.double(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": real.sum(),
    }
    if weights is not None:
        stub.use_vllm = True
        inputs["importance_sampling_ratio"] = weights
    return trainer._compute_loss(stub, None, inputs)


CASES = {
    "grpo": ({}, {}),
    "grpo with k3": ({"beta": 0.3}, {"beta": 0.3}),
    "k3 times the ratio": (
        {"beta": 0.3, "corrected": True},
        {"beta": 0.3, "args": {"use_bias_correction_kl": True}},
    ),
    "dr. grpo": ({"normalize": "length", "length": 11}, {"loss_type": "dr_grpo"}),
    "dapo": (
        {"normalize": "token", "clip": (0.2, 0.28)},
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "bnpo": ({"normalize": "token"}, {"loss_type": "bnpo"}),
    "two-sided": ({"dual_clip": 1.4}, {"args": {"delta": 1.4}}),
    "gspo": ({"level": "sequence"}, {"importance_sampling_level": "sequence"}),
    "cispo": (
        {"surrogate": "cispo", "normalize": "token", "clip": (0.2, 0.3)},
        {"loss_type": "cispo", "epsilon_high": 1.3},
    ),
    "truncated weights": ({"weights": True, "beta": 0.1}, {"weights": True, "beta": 0.1}),
    "on its own texts": ({"old": None}, {"old": None}),
}


@pytest.mark.parametrize("name", CASES)
def test_grpo_and_its_kin_are_those_of_trl(trl, name):
    mine, its = (dict(part) for part in CASES[name])
    new, old, ref, advantages, real = texts()
    if "old" in mine:
        old = mine.pop("old")
        its.pop("old")
    if mine.get("weights"):
        weights = importance_weights(new.detach(), old + 0.5 * numbers(B, T, seed=5), real)
        mine["weights"] = its["weights"] = weights
    if mine.get("beta"):
        mine["reference"] = ref
    ours = grpo_loss(new, advantages, real, old_log_probs=old, **mine)
    same(ours, theirs_grpo(trl.grpo, new, old, ref, advantages, real, **its), new)


def test_ppo_of_tokens_is_grpo_with_advantages_of_tokens(trl):
    new, old, ref, _, real = texts()
    advantages = numbers(B, T, seed=7)
    ours = ppo_loss(new, old, advantages, real)
    theirs = theirs_grpo(trl.grpo, new, old, ref, advantages, real, loss_type="bnpo")
    same(ours, theirs, new)


def test_rloo_of_trl_clips_the_ratio_of_whole_texts(trl):
    new, _, _, advantages, real = texts()
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False,
        epsilon_low=0.2,
        epsilon_high=0.2,
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        _metrics=Metrics(),
    )
    near = new.detach() + 0.05 * numbers(B, T, seed=9)
    ids = torch.zeros(B, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :2],
        "prompt_mask": torch.ones(B, 2),
        "completion_ids": ids,
        "completion_mask": real,
        "advantages": advantages,
        "old_logps": (near * real).sum(1),
    }
    theirs = trl.rloo._compute_loss(stub, None, inputs)
    # A text is one action: its log-probability is a sum.
    one = torch.ones(B, 1, dtype=torch.bool)
    ours = ppo_loss(
        (new * real).sum(1, keepdim=True), (near * real).sum(1, keepdim=True), advantages, one
    )
    same(ours, theirs, new)


# --- preferences ---------------------------------------------------------------------------------


def theirs_dpo(trainer, scores, reference, mask, *, loss_type, beta, smoothing=0.0):
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics=Metrics(),
        _total_train_tokens=0,
        _tp_size=1,
    )
    half = len(scores) // 2
    completion_mask = torch.cat([torch.zeros(len(scores), 1), mask.double()], 1)
    inputs = {
        "input_ids": torch.zeros(len(scores), T + 1, dtype=torch.long),
        "attention_mask": torch.ones(len(scores), T + 1),
        "completion_mask": completion_mask,
        "ref_chosen_logps": reference[:half],
        "ref_rejected_logps": reference[half:],
    }
    zero = torch.zeros(len(scores), T)

    def model(**_):
        return SimpleNamespace(
            log_probs=scores * mask, entropy=zero, mean_logits=zero, is_top1=zero.bool()
        )

    return trainer._compute_loss(stub, model, inputs, False)


@pytest.mark.parametrize("variant", ["sigmoid", "hinge", "ipo", "normalized"])
def test_dpo_and_its_kin_are_those_of_trl(trl, variant):
    pairs = 5
    scores = (-numbers(2 * pairs, T).abs()).requires_grad_()
    lengths = torch.tensor([7, 1, 3, 5, 2, 6, 4, 1, 7, 3])
    mask = torch.arange(T) < lengths[:, None]
    reference = (scores.detach() * mask).sum(1) + numbers(2 * pairs, seed=1)
    sums = (scores * mask).sum(1)
    tokens = (lengths[:pairs], lengths[pairs:])
    loss_type = "sigmoid_norm" if variant == "normalized" else variant
    how = {"tokens": tokens} if variant in ("ipo", "normalized") else {}
    ours = dpo_loss(
        *sums.chunk(2),
        *reference.chunk(2),
        beta=0.3,
        variant="sigmoid" if variant == "normalized" else variant,
        **how,
    ).loss
    same(ours, theirs_dpo(trl.dpo, scores, reference, mask, loss_type=loss_type, beta=0.3), scores)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo_is_that_of_trl(trl, smoothing):
    chosen, rejected = numbers(5, seed=1).requires_grad_(), numbers(5, seed=2).requires_grad_()
    stub = SimpleNamespace(
        accelerator=Accelerator(),
        loss_type="simpo",
        simpo_gamma=0.7,
        beta=1.9,
        label_smoothing=smoothing,
        alpha=0.0,
    )
    losses = trl.cpo.cpo_loss(stub, chosen, rejected)[0]
    tokens = (torch.tensor([2, 3, 5, 7, 1]), torch.tensor([1, 4, 2, 3, 6]))
    ours = simpo_loss(chosen * tokens[0], rejected * tokens[1], tokens, beta=1.9, margin=0.7)
    if smoothing:  # the negative control: another loss is another number
        assert not torch.allclose(ours, losses.mean(), rtol=1e-3, atol=1e-3)
    else:
        same(ours, losses.mean(), chosen, rejected)


def test_kto_is_that_of_trl(trl):
    rows = (-numbers(B, T).abs()).requires_grad_()
    mask = torch.arange(T) < torch.tensor([7, 1, 3, 5, 2, 6])[:, None]
    good = torch.tensor([True, False, True, True, False, False])
    reference = (rows.detach() * mask).sum(1) + numbers(B, seed=1)
    other = numbers(B, T, seed=2)
    base = (other * mask).sum(1) - 0.3
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=0.2,
        desirable_weight=1.0,
        undesirable_weight=1.7,
        _compute_kl_logps=lambda *a: (other * mask).sum(1),
        _metrics=Metrics(),
        _total_train_tokens=0,
        _tp_size=1,
        args=SimpleNamespace(),
    )
    zero = torch.zeros(B, T)

    def model(**kwargs):
        return SimpleNamespace(
            log_probs=rows * mask, entropy=zero, mean_logits=zero, is_top1=zero.bool()
        )

    batch = {
        "input_ids": torch.zeros(B, T + 1, dtype=torch.long),
        "attention_mask": torch.ones(B, T + 1),
        "completion_mask": torch.cat([torch.zeros(B, 1), mask.double()], 1),
        "label": good,
        "ref_logps": reference,
        "ref_KL_logps": base,
        "KL_input_ids": torch.zeros(B, T + 1, dtype=torch.long),
        "KL_attention_mask": torch.ones(B, T + 1),
        "KL_completion_mask": torch.cat([torch.zeros(B, 1), mask.double()], 1),
    }
    theirs = trl.kto._compute_loss(stub, model, batch, False)
    sums = (rows * mask).sum(1)
    kl = float(stub._metrics["train"]["kl"][-1])
    ours = kto_loss(sums, reference, good, kl=kl, beta=0.2, weights=(1.0, 1.7))
    same(ours, theirs, rows)


def test_the_head_is_that_of_trl(trl):
    hidden = numbers(11, 5).float().requires_grad_()
    weight = numbers(VOCAB, 5, seed=1).float().requires_grad_()
    targets = torch.randint(VOCAB, (11,), generator=torch.Generator().manual_seed(2))
    ours = head_log_probs(hidden, weight, targets, temperature=0.7, chunk_size=3)
    theirs = trl.head.apply(hidden, weight, None, targets, 0.7, 4)
    weigh = numbers(11, seed=3).float()
    torch.testing.assert_close(ours.log_probs, theirs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.entropy, theirs[1].detach(), rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad((ours.log_probs * weigh).sum(), (hidden, weight))
    its = torch.autograd.grad((theirs[0] * weigh).sum(), (hidden, weight))
    for one, other in zip(mine, its, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
