"""Attacks and meta-gradients beside torchattacks, ART and higher, which take seconds to import."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from companion.knowledge.robustness import fgsm, maml, pgd


@pytest.fixture(scope="module")
def peers() -> dict[str, Any]:
    """Import them once; what they warn of at import is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import higher
        import torchattacks
        from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier
    return {
        "torchattacks": torchattacks,
        "fgm": FastGradientMethod,
        "pgd": ProjectedGradientDescent,
        "classifier": PyTorchClassifier,
        "higher": higher,
    }


def case() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small network of pictures with one channel."""
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(35, 13), nn.ReLU(), nn.Linear(13, 3))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g) / 3
    x = torch.rand(11, 1, 5, 7, generator=g)
    return model.eval(), x, torch.randint(0, 3, (11,), generator=g)


def art_of(peers: dict[str, Any], model: nn.Module) -> Any:
    """ART's wrapper of a model."""
    return peers["classifier"](
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 5, 7),
        nb_classes=3,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def test_fgsm_is_that_of_torchattacks_and_art(peers: dict[str, Any]) -> None:
    model, x, y = case()
    ours = fgsm(model, x, y, eps=0.07)
    assert torch.equal(ours, peers["torchattacks"].FGSM(model, eps=0.07)(x, y))
    theirs = peers["fgm"](art_of(peers, model), eps=0.07).generate(x.numpy(), y.numpy())
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-7)


def test_pgd_is_that_of_torchattacks_and_art(peers: dict[str, Any]) -> None:
    model, x, y = case()
    ours = pgd(model, x, y, eps=0.1, step=0.02, steps=9)
    ask = {"eps": 0.1, "alpha": 0.02, "steps": 9, "random_start": False}
    theirs = peers["torchattacks"].PGD(model, **ask)(x, y)
    # They add the difference to the original back to it, at each step: a rounding of 1e-7.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-7)
    attack = peers["pgd"](
        art_of(peers, model), eps=0.1, eps_step=0.02, max_iter=9, num_random_init=0, verbose=False
    )
    theirs = torch.from_numpy(np.asarray(attack.generate(x.numpy(), y.numpy())))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_pgd_by_length_is_that_of_torchattacks(peers: dict[str, Any]) -> None:
    model, x, y = case()
    ask = {"eps": 0.8, "alpha": 0.15, "steps": 9, "random_start": False}
    theirs = peers["torchattacks"].PGDL2(model, **ask)(x, y)
    ours = pgd(model, x, y, eps=0.8, step=0.15, steps=9, norm=2)
    # They add 1e-10 to the lengths: gradients here are about 0.1.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_is_that_of_higher(peers: dict[str, Any], steps: int, first_order: bool) -> None:
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)
    (x, far), (y, truth) = (torch.randn(2, 7, k, generator=g).double() for k in (3, 2))

    def task(a: Tensor, b: Tensor) -> Any:
        return lambda p: (torch.func.functional_call(net, p, (a,)) - b).square().mean()

    found = maml(
        task(x, y),
        task(far, truth),
        dict(net.named_parameters()),
        lr=0.1,
        steps=steps,
        first_order=first_order,
    )
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    with peers["higher"].innerloop_ctx(net, inner, track_higher_grads=not first_order) as (f, opt):
        for _ in range(steps):
            opt.step((f(x) - y).square().mean())
        loss = (f(far) - truth).square().mean()
        at = list(f.parameters() if first_order else f.parameters(time=0))
        want = torch.autograd.grad(loss, at)
    torch.testing.assert_close(found.loss, loss.detach())
    for mine, theirs in zip(found.gradients.values(), want, strict=True):
        torch.testing.assert_close(mine, theirs)
