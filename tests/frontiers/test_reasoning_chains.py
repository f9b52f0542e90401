"""Chains as hidden variables, errors that pile up, and seeing against doing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion.frontiers import reasoning as re


def test_the_gradient_of_an_answer_is_that_of_chains_that_speak_for_it() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(5, 7, generator=g, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, 7, generator=g, dtype=torch.float64, requires_grad=True)
    log_r, log_y = z.log_softmax(-1), torch.nn.functional.logsigmoid(w)
    made = re.marginalize(log_r, log_y)
    torch.testing.assert_close(made.log_prob.exp(), (log_r.exp() * log_y.exp()).sum(-1))
    torch.testing.assert_close(made.posterior.sum(-1), torch.ones(5, dtype=torch.float64))
    first = torch.autograd.grad(made.log_prob.sum(), (z, w), retain_graph=True)
    surrogate = (made.posterior.detach() * (log_r + log_y)).sum()
    second = torch.autograd.grad(surrogate, (z, w))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_improbable_chains_do_not_underflow() -> None:
    made = re.marginalize(torch.full((3,), -5000.0), torch.tensor([-1.0, -2.0, -3.0]))
    assert made.log_prob == pytest.approx(-5000 + math.log(sum(math.exp(-k) for k in (1, 2, 3))))
    torch.testing.assert_close(made.posterior.sum(), torch.tensor(1.0))


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 30))
def test_success_follows_its_recursion(error: float, recovery: float, steps: int) -> None:
    want = 1.0
    for _ in range(steps):
        want = (1 - error) * want + recovery * (1 - want)
    e = torch.tensor(error, dtype=torch.float64)
    found = float(re.chain_success(e, steps=steps, recovery=recovery))
    assert found == pytest.approx(want, abs=1e-9)


def test_a_hundred_steps_of_99_percent_are_mostly_wrong() -> None:
    e = torch.tensor([0.01, 0.001], dtype=torch.float64)
    assert [round(v, 3) for v in re.chain_success(e, steps=100).tolist()] == [0.366, 0.905]


def test_rare_errors_add_up_in_single_precision() -> None:
    rare = torch.tensor(1e-9)
    found = re.chain_success(rare, steps=1_000_000)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(math.exp(-1e-3), abs=1e-6)
    back = re.chain_success(rare, steps=1_000_000, recovery=1e-9)
    assert float(back) == pytest.approx((1 + math.exp(-2e-3)) / 2, abs=1e-6)
    written = re.expected_steps(rare, steps=1_000_000, feedback="outcome")
    assert float(written) == pytest.approx(1e6 * math.exp(1e-3), rel=1e-6)


def test_no_chain_means_no_posterior() -> None:
    never = torch.tensor([-math.inf, 0.0])
    made = re.marginalize(never, never.flip(0))
    assert float(made.log_prob) == -math.inf
    assert made.posterior.isnan().all()


@pytest.mark.parametrize("feedback", ["outcome", "process"])
def test_expected_steps_are_those_of_a_simulation(feedback: str) -> None:
    g = torch.Generator().manual_seed(0)
    error, length = 0.2, 5
    steps = torch.rand(20_000, 400, generator=g) > error
    if feedback == "process":
        # The written steps until as many as the chain is long were right.
        done = (steps.cumsum(1) == length).long().argmax(1) + 1
    else:
        chains = steps.view(20_000, 80, length).all(-1)
        assert chains.any(1).all()
        done = (chains.long().argmax(1) + 1) * length
    want = done.double().mean()
    spread = done.double().std() / math.sqrt(len(done))
    found = re.expected_steps(torch.tensor(error), steps=length, feedback=feedback)  # type: ignore[arg-type]
    assert abs(float(found) - float(want)) < 5 * float(spread)


def world(g: torch.Generator, z: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A table of a fork: z leads to x and to y, x leads to y."""
    of_z = torch.rand(z, generator=g, dtype=torch.float64).softmax(0)
    of_x = torch.rand(z, 2, generator=g, dtype=torch.float64).softmax(1)
    of_y = (3 * torch.rand(z, 2, 4, generator=g, dtype=torch.float64)).softmax(2)
    return of_z[:, None, None] * of_x[..., None] * of_y, of_z, of_x, of_y


def test_doing_is_a_table_with_the_arrow_into_x_cut() -> None:
    g = torch.Generator().manual_seed(0)
    joint, of_z, _, of_y = world(g)
    torch.testing.assert_close(re.backdoor(joint), (of_z[:, None, None] * of_y).sum(0))
    torch.testing.assert_close(re.observed(joint), joint.sum(0) / joint.sum((0, 2))[:, None])
    assert (re.backdoor(joint) - re.observed(joint)).abs().max() > 0.001
    torch.testing.assert_close(re.backdoor(1000 * joint), re.backdoor(joint))


def test_a_z_that_never_occurs_changes_nothing() -> None:
    joint, *_ = world(torch.Generator().manual_seed(0))
    more = torch.cat([joint, torch.zeros_like(joint[:1])])
    torch.testing.assert_close(re.backdoor(more), re.backdoor(joint))
    torch.testing.assert_close(re.observed(more), re.observed(joint))


def test_without_confounding_seeing_is_doing() -> None:
    g = torch.Generator().manual_seed(0)
    _, of_z, of_x, of_y = world(g)
    free = of_z[:, None, None] * of_x[:1, :, None] * of_y
    torch.testing.assert_close(re.backdoor(free), re.observed(free))


def test_simpson() -> None:
    # Kidney stones, Charig et al. 1986: better in both groups, worse in all.
    counts = torch.tensor([[[6, 81], [36, 234]], [[71, 192], [25, 55]]]).double()
    seen, done = re.observed(counts)[:, 1], re.backdoor(counts)[:, 1]
    assert seen[0] < seen[1]
    assert done[0] > done[1]


def test_wrong_input_is_told(own_checks: None) -> None:
    with pytest.raises(ValueError, match="its effect is not in the data"):
        re.backdoor(torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[1.0, 2.0], [3.0, 1.0]]]))
    with pytest.raises(ValueError, match="a value of x never occurs"):
        re.observed(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
    with pytest.raises(ValueError, match="none below 0"):
        re.observed(-torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="not all 0"):
        re.backdoor(torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="error and recovery"):
        re.chain_success(torch.tensor(0.5), steps=3, recovery=1.5)
    for outside in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="error and recovery"):
            re.chain_success(torch.tensor(outside), steps=3)
        with pytest.raises(ValueError, match="error must lie"):
            re.expected_steps(torch.tensor(outside), steps=3, feedback="process")
    with pytest.raises(ValueError, match="feedback must be"):
        re.expected_steps(torch.tensor(0.5), steps=3, feedback="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="never ends"):
        re.expected_steps(torch.tensor(1.0), steps=3, feedback="process")
    with pytest.raises(ValueError, match="chains"):
        re.marginalize(torch.zeros(2, 0), torch.zeros(2, 0))
