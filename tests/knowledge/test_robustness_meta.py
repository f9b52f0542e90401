"""Learning to learn: closed forms, torch.func, and what must not be touched."""

from typing import Any

import pytest
import torch
from torch import Tensor

from companion.core import generator
from companion.knowledge.robustness import adapt, maml, reptile, sine_tasks

D = torch.float64


def line(a: float, c: float) -> Any:
    return lambda p: a / 2 * (p["t"] - c).square().sum()


def test_the_numbers_worked_out_by_hand() -> None:
    start = {"t": torch.tensor([2.0], dtype=D)}
    assert float(adapt(line(1, 0), start, lr=0.1)["t"]) == pytest.approx(1.8)
    full = maml(line(1, 0), line(1, 1), start, lr=0.1)
    first = maml(line(1, 0), line(1, 1), start, lr=0.1, first_order=True)
    assert float(full.gradients["t"]) == pytest.approx(0.72)
    assert float(first.gradients["t"]) == pytest.approx(0.8)
    assert float(full.loss) == pytest.approx(0.32)


def curved(seed: int) -> Any:
    a = torch.randn(3, 5, generator=generator(seed), dtype=D)
    return lambda p: (torch.tanh(p["t"] @ a) + p["u"]).square().sum()


def a_start() -> dict[str, Tensor]:
    g = generator(7)
    return {"t": torch.randn(3, generator=g, dtype=D), "u": torch.randn(5, generator=g, dtype=D)}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_meta_gradients_are_those_of_torch_func(steps: int) -> None:
    train, test = curved(0), curved(1)

    def after(p: Any) -> Tensor:
        for _ in range(steps):
            slopes = torch.func.grad(train)(p)
            p = {name: p[name] - 0.1 * slopes[name] for name in p}
        loss: Tensor = test(p)
        return loss

    want = torch.func.grad(after)(a_start())
    found = maml(train, test, a_start(), lr=0.1, steps=steps)
    for name in want:
        torch.testing.assert_close(found.gradients[name], want[name])
    first = maml(train, test, a_start(), lr=0.1, steps=steps, first_order=True)
    end = adapt(train, a_start(), lr=0.1, steps=steps)
    alone = torch.func.grad(test)({k: v.detach() for k, v in end.items()})
    for name in want:
        torch.testing.assert_close(first.gradients[name], alone[name])
    if steps:  # and the two differ: first order is not the gradient
        assert not torch.allclose(first.gradients["t"], want["t"], rtol=1e-3)


def test_nothing_is_touched(g: torch.Generator) -> None:
    start = {name: p.requires_grad_() for name, p in a_start().items()}
    before = {name: p.detach().clone() for name, p in start.items()}
    with torch.no_grad():
        maml(curved(0), curved(1), start, lr=0.1, steps=2)
        reptile([curved(0), curved(1)], start, lr=0.1)
        assert not adapt(curved(0), start, lr=0.1)["t"].requires_grad
    for name, p in start.items():
        assert torch.equal(p, before[name])
        assert p.grad is None
        assert p.requires_grad
    assert adapt(curved(0), start, lr=0.1)["t"].grad_fn is not None


def test_adapted_parameters_carry_a_graph_of_the_order_that_was_asked() -> None:
    for first_order, want in ((False, 0.9), (True, 1.0)):
        start = {"t": torch.tensor([2.0], dtype=D, requires_grad=True)}
        made = adapt(line(1, 0), start, lr=0.1, first_order=first_order)
        (slope,) = torch.autograd.grad(made["t"].sum(), start["t"])
        assert float(slope) == pytest.approx(want)


def test_reptile_is_the_way_that_descent_went() -> None:
    start, batches = a_start(), [curved(k) for k in range(3)]
    held = {name: p.clone() for name, p in start.items()}
    for batch in batches:
        held = {k: v.detach() for k, v in adapt(batch, held, lr=0.1).items()}
    found = reptile(batches, start, lr=0.1)
    for name, p in start.items():
        torch.testing.assert_close(found[name], (p - held[name]) / 0.1)


def test_tasks_side_by_side_do_not_mix() -> None:
    # A leading axis of tasks: the gradient of each is that of the task alone.
    c = torch.tensor([0.5, -1.0, 2.0], dtype=D)
    starts = torch.tensor([1.0, 2.0, -1.0], dtype=D)

    def together(p: Any) -> Tensor:
        return ((p["t"] - c) ** 4).sum()

    many = maml(together, together, {"t": starts}, lr=0.01, steps=2).gradients["t"]
    for k in range(3):
        alone = lambda p, k=k: ((p["t"] - c[k]) ** 4).sum()  # noqa: E731
        one = maml(alone, alone, {"t": starts[k : k + 1]}, lr=0.01, steps=2)
        torch.testing.assert_close(many[k : k + 1], one.gradients["t"])


def test_unused_parameters_get_zeros_and_meta_works() -> None:
    start = a_start() | {"unused": torch.ones(2, dtype=D)}
    found = maml(curved(0), curved(1), start, lr=0.1)
    assert found.gradients["unused"].tolist() == [0, 0]
    empty = {"t": torch.empty(3, device="meta")}
    assert maml(line(1, 0), line(1, 1), empty, lr=0.1).gradients["t"].is_meta


def test_waves_are_those_of_the_paper(g: torch.Generator) -> None:
    waves = sine_tasks(2000, generator=g, dtype=D)
    assert float(waves.amplitude.min()) >= 0.1
    assert float(waves.amplitude.max()) <= 5
    assert 0 <= float(waves.phase.min()) <= float(waves.phase.max()) <= torch.pi
    x = torch.rand(2000, 3, generator=g, dtype=D)
    torch.testing.assert_close(waves(x), waves.amplitude * torch.sin(x + waves.phase))


@pytest.mark.usefixtures("own_checks")
def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        adapt(line(1, 0), {}, lr=0.1)
    with pytest.raises(ValueError, match="steps must be 0 or more, got -1"):
        maml(line(1, 0), line(1, 0), a_start(), lr=0.1, steps=-1)
    with pytest.raises(ValueError, match="one batch or more"):
        reptile([], a_start(), lr=0.1)
    with pytest.raises(ValueError, match=r"lr must lie in \(0.0"):
        reptile([line(1, 0)], {"t": torch.ones(1)}, lr=0.0)
