"""Without values: all of it runs on the meta device; in half precision it stays finite."""

import pytest
import torch
from torch import Tensor, nn

from companion.frontiers import reinforcement as rl
from companion.transformer.block import Decoder, TransformerConfig

CONFIG = TransformerConfig(vocab=11, dim=12, layers=1, heads=3, ff_dim=13, context=17)


def test_all_of_it_runs_on_meta() -> None:
    def t(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta")

    real = torch.empty(5, 7, dtype=torch.bool, device="meta")
    row, text = t(5, 7), t(5)
    made: list[Tensor] = [
        rl.bandit_gradient(row, row),
        rl.optimal_baseline(row, text),
        rl.rloo_advantages(row),
        *(rl.grpo_advantages(row, scale=scale) for scale in ("group", "batch", "none")),
        *rl.gae(row, row, real=real, last_value=text),
        rl.reinforce_loss(row, text, real),
        rl.ppo_loss(row, row, row, real, dual_clip=3.0),
        rl.grpo_loss(row, text, real, old_log_probs=row, reference=row, beta=0.1, weights=row),
        rl.clipped_share(row, row, text, real),
        rl.value_loss(row, row, real, old_values=row, clip=0.2),
        rl.importance_weights(row, row, real),
        *(rl.kl_estimate(row, row, estimator=name) for name in ("k1", "k2", "k3")),
        rl.penalized_rewards(text, row, row, real, beta=0.1),
        *rl.kl_optimum(row, row, beta=0.1),
        rl.all_texts(3, 2, device="meta"),
        rl.overoptimization(text, 1.0, 0.1, kind="rl"),
        *rl.fit_overoptimization(text, text, kind="bon"),
        rl.bradley_terry_loss(text, text, margin=text),
        rl.fit_bradley_terry(t(5, 5)),
        *rl.dpo_loss(text, text, text, text),
        rl.simpo_loss(text, text, (text.long(), text.long())),
        rl.kto_loss(text, text, text.bool()),
        rl.p_true(row, [1], [2]),
        rl.majority_rewards(row.long(), none=0),
        *rl.correction(text.bool(), text.bool(), text.bool()),
        rl.corrected_accuracy(text, t=0.9, f=0.1),
        rl.last_real(real),
        *rl.head_log_probs(row, t(11, 7), text.long()),
    ]
    with torch.device("meta"):
        model = Decoder(CONFIG)
        judge = rl.RewardModel(Decoder(CONFIG))
    ids = torch.zeros(5, 7, dtype=torch.long, device="meta")
    made += [*rl.completion_scores(model, ids, prompt=3), judge(ids, real=real)]
    assert all(tensor.is_meta for tensor in made)


def test_half_precision_is_widened_and_autocast_stays_finite() -> None:
    g = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        new, old = (-100 * torch.rand(3, 4001, generator=g)).to(dtype), torch.zeros(3, 4001)
        real = torch.ones(3, 4001, dtype=torch.bool)
        ones = torch.ones(3)
        made = rl.reinforce_loss(new, ones, real)  # sums beyond the largest float16
        exact = rl.reinforce_loss(new.double(), ones.double(), real)
        assert made.dtype == torch.float32
        torch.testing.assert_close(made.double(), exact, rtol=1e-5, atol=1e-5)
        close = rl.grpo_loss(new, ones, real, old_log_probs=(new + 0.1).to(dtype))
        assert bool(torch.isfinite(close))
        del old
    with torch.random.fork_rng(devices=[]):
        model = Decoder(CONFIG)
    ids = torch.randint(11, (3, 9), generator=g)
    plain = rl.completion_scores(model, ids, prompt=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = rl.completion_scores(model, ids, prompt=4)
        cast.log_probs.sum().backward()
    assert cast.log_probs.dtype == torch.float32
    torch.testing.assert_close(cast.log_probs, plain.log_probs, rtol=0.05, atol=0.05)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_a_reward_is_read_at_the_last_token_wherever_padding_is(own_checks) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        judge = rl.RewardModel(Decoder(CONFIG)).double()
        nn.init.normal_(judge.score.weight)
    text = torch.tensor([[3, 5, 7, 0]])  # its last token is the one that pads
    alone = judge(text)
    pad = torch.zeros(1, 3, dtype=torch.long)
    yes, no = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool)
    for ids, real in (
        (torch.cat([text, pad], 1), torch.cat([yes, no], 1)),
        (torch.cat([pad, text], 1), torch.cat([no, yes], 1)),
    ):
        torch.testing.assert_close(judge(ids, real=real), alone)
    # The negative control: one column off is another number.
    assert abs(float((judge(text[:, :3]) - alone).detach())) > 1e-3
    assert rl.last_real(torch.cat([no, yes, no], 1)).tolist() == [6]
    for wrong in (yes.long(), yes[:, :0]):
        with pytest.raises(ValueError, match="real must be boolean with one column at least"):
            rl.last_real(wrong)


def test_a_new_judge_has_no_opinion() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        judge = rl.RewardModel(Decoder(CONFIG))
    assert judge(torch.tensor([[3, 5], [7, 0]])).tolist() == [0.0, 0.0]
