"""The training loop: equal to a hand-written one, repeatable, and clear when it cannot go on."""

import pytest
import torch

from companion.core import Checkpoints, generator, randn, train

ROWS, FEATURES = 31, 5


def problem():
    g = generator(3)
    inputs = randn(ROWS, FEATURES, generator=g)
    return inputs, inputs @ torch.arange(1.0, FEATURES + 1)


def run(steps=40, device="cpu", **more):
    inputs, targets = (t.to(device) for t in problem())
    weight = torch.nn.Parameter(torch.zeros(FEATURES, device=device))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.5)

    def loss_fn(rows):
        return ((inputs[rows] @ weight - targets[rows]) ** 2).mean()

    batches = [torch.arange(start, ROWS, 3, device=device) for start in range(3)]
    log = train(loss_fn, batches, optimizer, steps=steps, **more)
    return log, weight.detach().cpu(), optimizer


def by_hand(steps=40, factor=lambda step: 1.0, clip=float("inf")):
    """Heavy-ball gradient descent with the gradient of the mean square written out."""
    inputs, targets = problem()
    weight, velocity, losses = torch.zeros(FEATURES), torch.zeros(FEATURES), []
    for step in range(steps):
        rows = torch.arange(step % 3, ROWS, 3)
        residual = inputs[rows] @ weight - targets[rows]
        losses.append((residual**2).mean())
        gradient = 2 * inputs[rows].T @ residual / len(rows)
        gradient = gradient * min(1.0, clip / float(gradient.norm()))
        velocity = 0.5 * velocity + gradient
        weight = weight - 0.1 * factor(step) * velocity
    return torch.stack(losses), weight


def test_it_equals_gradient_descent_written_by_hand(device):
    log, weight, _ = run(device=device)
    losses, expected = by_hand()
    torch.testing.assert_close(log.loss, losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)
    assert log.steps == 40
    assert log.loss.device.type == "cpu"
    assert log.final() < 0.01 * float(log.loss[0])


def test_schedule_and_clipping_equal_the_ones_written_by_hand():
    def factor(step):
        return 1 / (1 + step)

    log, weight, optimizer = run(schedule=factor, clip_norm=2.0)
    losses, expected = by_hand(factor=factor, clip=2.0)
    torch.testing.assert_close(log.loss, losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)
    assert float(log.grad_norm[0]) > 2.0
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_two_runs_are_equal_to_the_last_bit():
    assert torch.equal(run()[0].loss, run()[0].loss)


def test_without_clipping_no_norm_is_claimed():
    assert bool(run(steps=3)[0].grad_norm.isnan().all())


def test_bfloat16_autocast_stays_close(device):
    log, _, _ = run(device=device, autocast=torch.bfloat16)
    # bfloat16 keeps eight bits, and the loss squares the residual.
    torch.testing.assert_close(log.loss[:5], run(steps=5)[0].loss, rtol=0.05, atol=0.05)
    assert bool(torch.isfinite(log.loss).all())


def test_progress_goes_to_standard_error(capsys):
    run(steps=60, progress="fitting")
    out, err = capsys.readouterr()
    assert out == ""
    assert "fitting: step 60/60, loss" in err
    assert err.endswith("\n")


def test_a_diverging_run_stops_and_names_the_step():
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], lr=1e20)
    with pytest.raises(FloatingPointError, match=r"loss at step \d+ is (inf|nan)"):
        train(lambda batch: weight**4, [None], optimizer, steps=500)


def test_rates_are_restored_after_a_failure():
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], lr=0.25)

    def fails(batch):
        raise RuntimeError("no such batch")

    with pytest.raises(RuntimeError, match="no such batch"):
        train(fails, [None], optimizer, steps=5, schedule=lambda step: 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_bad_arguments_are_refused():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def scalar(batch):
        return weight.sum()

    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        train(scalar, [None], optimizer, steps=0)
    with pytest.raises(ValueError, match=r"clip_norm must be above 0, got 0\.0"):
        train(scalar, [None], optimizer, steps=1, clip_norm=0.0)
    with pytest.raises(ValueError, match=r"must return a scalar, got shape \(3,\)"):
        train(lambda batch: weight * 2, [None], optimizer, steps=1)
    with pytest.raises(ValueError, match="batches ran out"):
        train(scalar, iter([None, None]), optimizer, steps=3)


@pytest.mark.parametrize("clip", [None, 2.0])
def test_accumulated_batches_equal_one_large_batch(clip):
    inputs, targets = problem()

    def run(parts):
        weight = torch.nn.Parameter(torch.zeros(FEATURES))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        rows = torch.arange(30).split(30 // parts)
        log = train(
            lambda r: ((inputs[r] @ weight - targets[r]) ** 2).mean(),
            list(rows),
            optimizer,
            steps=12,
            accumulate=parts,
            clip_norm=clip,
        )
        return log, weight.detach()

    (one, weight), (several, other) = run(1), run(5)
    torch.testing.assert_close(several.loss, one.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other, weight, rtol=1e-4, atol=1e-5)
    # Batches of unequal length would not: their means weigh the same.
    rows = [torch.arange(3), torch.arange(3, 30)]
    weight = torch.nn.Parameter(torch.zeros(FEATURES))
    log = train(
        lambda r: ((inputs[r] @ weight - targets[r]) ** 2).mean(),
        rows,
        torch.optim.SGD([weight], lr=0.1),
        steps=1,
        accumulate=2,
    )
    assert abs(float(log.loss[0] - one.loss[0])) > 0.1


def test_on_step_sees_every_step_and_its_loss():
    seen = []
    log, _, _ = run(steps=7, on_step=lambda step, loss: seen.append((step, float(loss))))
    assert [step for step, _ in seen] == list(range(1, 8))
    assert [loss for _, loss in seen] == log.loss.tolist()


def test_accumulate_must_be_a_count():
    with pytest.raises(ValueError, match="accumulate must be 1 or more, got 0"):
        run(steps=1, accumulate=0)


def test_processes_exchange_gradients_with_the_last_batch_of_a_step_only():
    entered = []

    class Quiet:
        def __enter__(self):
            entered.append("quiet")

        def __exit__(self, *error):
            entered.append("loud")

    class Parallel:
        """A model as DDP wraps it."""

        def __init__(self):
            self.weight = torch.nn.Parameter(torch.ones(2))

        def no_sync(self):
            return Quiet()

        def __call__(self, rows):
            entered.append("loss")
            return (rows * self.weight).square().sum()

    class Sharded(Parallel):
        """A model as FSDP2 wraps it."""

        def set_requires_gradient_sync(self, last):
            entered.append(last)

    for kind, expected in (
        (Parallel, ["quiet", "loss", "loud", "quiet", "loss", "loud", "loss"]),
        (Sharded, [False, "loss", False, "loss", True, "loss"]),
    ):
        model = kind()
        entered.clear()
        optimizer = torch.optim.SGD([model.weight], lr=0.1)
        train(model, [torch.ones(2)], optimizer, steps=2, accumulate=3)
        assert entered == expected * 2


def test_checkpoints_are_made_at_every_so_many_steps_and_at_the_end(tmp_path):
    made = Checkpoints(tmp_path, model=torch.nn.Linear(1, 1), every=3, keep=9)
    run(steps=8, checkpoints=made)
    assert made.steps() == [3, 6, 8]
