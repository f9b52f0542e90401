"""Dropout in a compiled graph drops what it drops in eager mode, forward and backward."""

import pytest
import torch
from torch import nn

from companion.core import generator, randn
from companion.foundations.regularization import (
    Dropout,
    dropout,
    dropout_mask,
    dropout_penalty,
    hashed_mask,
    random_features,
    ridge,
)


def test_the_form_with_a_mask_compiles():
    x = randn(7, 5, generator=generator(0), dtype=torch.float64)
    mask = dropout_mask((7, 5), p=0.3, generator=generator(1))
    compiled = torch.compile(lambda x, m: dropout(x, p=0.3, mask=m), fullgraph=True)
    torch.testing.assert_close(compiled(x, mask), dropout(x, p=0.3, mask=mask))


def test_a_generator_cannot_enter_a_graph():
    # If this fails one day, dropout(generator=) has become compilable: say so in its docstring.
    compiled = torch.compile(
        lambda x, g: dropout(x, p=0.3, generator=g), fullgraph=True, backend="eager"
    )
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(torch.ones(7), generator(0))


@pytest.mark.inductor
def test_the_hash_is_the_same_in_a_graph():
    compiled = torch.compile(lambda key: hashed_mask((101, 97), p=0.3, key=key), fullgraph=True)
    for key in torch.tensor([[1, 2, 3], [2**32 - 1, 2**31, 2**32 - 1], [0, 0, 0]]):
        assert torch.equal(compiled(key), hashed_mask((101, 97), p=0.3, key=key))


def model():
    # Linear layers draw from the global stream, so their weights are set from a generator.
    g = generator(0)
    made = nn.Sequential(
        nn.Linear(5, 11), nn.ReLU(), Dropout(0.4, generator=g), nn.Linear(11, 3),
        Dropout(0.2, generator=g),
    ).double()  # fmt: skip
    for parameter in made.parameters():
        parameter.data = randn(*parameter.shape, generator=g, dtype=torch.float64)
    return made


def test_a_compiled_model_drops_the_same_units_step_by_step():
    x = randn(13, 5, generator=generator(3), dtype=torch.float64)
    eager, original = model(), model()
    compiled = torch.compile(original, fullgraph=True)
    outputs = []
    for _ in range(3):
        ours, theirs = compiled(x), eager(x)
        torch.testing.assert_close(ours, theirs)
        # The backward pass must see the mask of the forward pass, not a new one.
        for one, other in zip(
            torch.autograd.grad(ours.sum(), list(original.parameters())),
            torch.autograd.grad(theirs.sum(), list(eager.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(one, other)
        outputs.append(theirs)
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(original[2].state, eager[2].state)
    assert int(original[2].state[2]) == 3


def test_a_compiled_model_in_evaluation_is_plain():
    x = randn(13, 5, generator=generator(3), dtype=torch.float64)
    made = model().eval()
    compiled = torch.compile(made, fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x))
    assert int(made[2].state[2]) == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda X, w: dropout_penalty(X, w, p=0.3),
        lambda X, w: random_features(X, X.T, X[:, 0]),
        lambda X, w: ridge(X, X[:, 0], lam=0.3),
    ],
    ids=["penalty", "features", "ridge"],
)
def test_linear_functions_compile(function):
    g = generator(0)
    X, w = randn(7, 5, generator=g, dtype=torch.float64), randn(5, generator=g, dtype=torch.float64)
    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(compiled(X, w), function(X, w))
