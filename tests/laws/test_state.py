"""What a function finds it leaves: modes, switches and hooks, from every state it may start in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from companion.foundations.embeddings import Schedule, corpus
from companion.foundations.regularization import Dropout
from companion.models import sample
from companion.transformer.block import Decoder, TransformerConfig

from .public import callables, numbers

FUNCTIONS = callables()
CONFIG = TransformerConfig(vocab=11, dim=12, layers=2, heads=3, ff_dim=13, context=17)
IDS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
LABELS = torch.tensor([0, 3, 1])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Net(nn.Module):
    """Dropout of both kinds, beside layers whose mode matters."""

    def __init__(self) -> None:
        super().__init__()
        own, theirs = Dropout(0.5, generator=seeded()), nn.Dropout(0.5)
        self.parts = nn.Sequential(nn.Linear(5, 7), own, nn.BatchNorm1d(7), theirs, nn.Linear(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.parts(x)
        return made


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind()


def decoder() -> nn.Module:
    return Decoder(CONFIG)


def no_model() -> nn.Module:
    return nn.Identity()


def loss_of(model: Any) -> Callable[[Any], Tensor]:
    return lambda batch: model(batch).square().mean((1, 2))


#: A model, and what is called with it.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Any], Any]]] = {
    "fisher_diagonal": (
        decoder,
        lambda f, m: f(
            lambda row: -m(row[None]).log_softmax(-1)[0, -1, 3],
            [*IDS],
            dict(m.named_parameters()),
        ),
    ),
    "generate": (decoder, lambda f, m: f(m, IDS, tokens=3, pick=sample(generator=seeded()))),
    "head_importance": (decoder, lambda f, m: f(m, loss_of(m), [IDS])),
    "fgsm": (Net, lambda f, m: f(m, torch.ones(3, 5), LABELS, eps=0.1)),
    "influence": (no_model, lambda f, m: f(lambda x: x.cumsum(0), numbers(5, 3))),
    "initialize": (no_model, lambda f, m: f(CONFIG, generator=seeded())),
    "masking_audit": (
        Net,
        lambda f, m: f(
            m, torch.ones(3, 5), LABELS, eps=0.1, steps=[1], queries=2, generator=seeded()
        ),
    ),
    "mc_dropout": (Net, lambda f, m: f(m, torch.ones(3, 5), samples=2)),
    "pgd": (Net, lambda f, m: f(m, torch.ones(3, 5), LABELS, eps=0.1, step=0.1, steps=2)),
    "scheduled_sampling": (decoder, lambda f, m: f(m, IDS, ratio=0.5, generator=seeded())),
    "smooth_votes": (
        Net,
        lambda f, m: f(m, torch.ones(3, 5), sigma=0.1, samples=3, generator=seeded()),
    ),
    "train_sgns": (
        no_model,
        lambda f, m: f(
            corpus([["a", "b", "c"] * 9], min_count=1),
            dim=3,
            schedule=Schedule(epochs=1, window=2, block=4, shared=8, blocks=2),
            generator=seeded(),
        ),
    ),
}
#: Need a graph, so they are called with gradients on.
GRADIENTS = {"fisher_diagonal", "head_importance", "influence"}
MODES: dict[str, Callable[[int], bool]] = {
    "training": lambda index: True,
    "evaluating": lambda index: False,
    "mixed": lambda index: index % 2 == 0,
    "mixed the other way": lambda index: index % 2 == 1,
}


def found(model: nn.Module) -> dict[str, Any]:
    """Everything that must not change."""
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "trainable": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "weights": [p.tolist() for p in model.parameters()],
        "grad mode": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "random": torch.random.get_rng_state().tolist(),
    }


@contextmanager
def started(*, grad: bool, dtype: torch.dtype, threads: int) -> Iterator[None]:
    before = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    try:
        with torch.set_grad_enabled(grad):
            yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_num_threads(before[1])


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("dtype", "threads"), [(torch.float32, 1), (torch.float64, 2)])
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_state_is_left_as_it_was_found(
    name: str, mode: str, grad: bool, dtype: torch.dtype, threads: int
) -> None:
    kind, call = CASES[name]
    grad = grad or name in GRADIENTS
    with started(grad=grad, dtype=dtype, threads=threads):
        model = made(kind)
        for index, module in enumerate(model.modules()):
            module.training = MODES[mode](index)
        if name == "mc_dropout":  # its batch norm reads the batch, and counts it, in training
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.track_running_stats = False
        # PyTorch's own dropout draws from the global generator, as it should.
        torch.manual_seed(0)
        before = found(model)
        call(FUNCTIONS[name], model)
        after = found(model)
    if name == "mc_dropout":
        del before["random"], after["random"]
    assert after == before


@pytest.mark.parametrize("mode", sorted(MODES))
def test_the_modes_of_dropout_come_back_after_an_error(mode: str) -> None:
    model = made(Net)
    for index, module in enumerate(model.modules()):
        module.training = MODES[mode](index)
    before = found(model)["modes"]
    with pytest.raises(RuntimeError):
        FUNCTIONS["mc_dropout"](model, torch.ones(3, 4), samples=2)
    assert found(model)["modes"] == before
