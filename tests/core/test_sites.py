"""Sites: what is read and replaced, in which order, and that nothing is left behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from companion.core import HasSites, site_names, watch

X = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)


class Affine(HasSites):
    """a x + 1, with a site between."""

    sites = ("product",)

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.site("product", self.a * x) + 1


class Around(HasSites):
    """A layer with a site before it, as a block has."""

    sites = ("before",)

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.site("before", x))
        return out


def chain() -> nn.Sequential:
    return nn.Sequential(Affine(2.0), nn.Sequential(Affine(3.0)), nn.Identity())


def test_names_are_paths_in_the_order_of_the_modules() -> None:
    assert site_names(chain()) == ("0.product", "1.0.product")
    assert site_names(Affine(1.0)) == ("product",)
    assert site_names(nn.Linear(2, 3)) == ()


def test_what_is_read_is_what_the_model_computes() -> None:
    model = chain()
    expected = model(X)
    with watch(model, read=["1.*", "0.product"]) as seen:
        assert dict(seen) == {}
        y = model(X)
    assert torch.equal(y, expected)
    assert list(seen) == ["0.product", "1.0.product"]
    assert torch.equal(seen["0.product"], 2 * X)
    assert torch.equal(seen["1.0.product"], 3 * (2 * X + 1))
    model(10 * X)  # after the block nothing is read
    assert torch.equal(seen["0.product"], 2 * X)


def test_a_replacement_is_a_tensor_a_function_or_a_look() -> None:
    model, looked = chain(), []
    with watch(model, replace={"0.product": X}) as seen:
        torch.testing.assert_close(model(X), 3 * (X + 1) + 1)
        assert len(seen) == 0
    with watch(model, replace={"*": lambda z: -z}):
        torch.testing.assert_close(model(X), -3 * (-2 * X + 1) + 1)
    with watch(model, replace={"*": lambda z: looked.append(z)}):
        torch.testing.assert_close(model(X), 3 * (2 * X + 1) + 1)
    assert [torch.equal(z, e) for z, e in zip(looked, (2 * X, 3 * (2 * X + 1)), strict=True)]


def test_what_replaces_takes_the_dtype_of_the_activation() -> None:
    model = chain().bfloat16()
    with watch(model, replace={"0.product": lambda z: z + torch.ones(3)}):
        assert model(X.bfloat16()).dtype == torch.bfloat16


def test_gradients_flow_through_what_is_read_and_what_replaces() -> None:
    model, steer = chain(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    with watch(model, read=["0.product"], replace={"0.product": lambda z: z + steer}) as seen:
        y = model(X)
    assert torch.equal(torch.autograd.grad(y.sum(), steer, retain_graph=True)[0], X * 0 + 3)
    (by_read,) = torch.autograd.grad(y.sum(), seen["0.product"], retain_graph=True)
    assert torch.equal(by_read, X * 0 + 3)
    (by_a,) = torch.autograd.grad(seen["0.product"].square().sum(), model[0].a)
    torch.testing.assert_close(by_a, (2 * 2 * X.square()).sum())


def test_contexts_nest_the_outer_one_first_and_replacements_act_in_their_order() -> None:
    model = chain()
    name = "0.product"
    with watch(model, read=[name], replace={name: lambda z: z + 1}) as outer:
        with watch(model, read=[name], replace={name: lambda z: 10 * z}) as inner:
            model(X)
        assert torch.equal(outer[name], 2 * X + 1)
        assert torch.equal(inner[name], 10 * (2 * X + 1))
        model(X)
        assert torch.equal(outer[name], 2 * X + 1)
    with watch(
        model, read=[name], replace={name: lambda z: z + 1, "0.*": lambda z: 10 * z}
    ) as seen:
        model(X)
    assert torch.equal(seen[name], 10 * (2 * X + 1))


def test_nothing_stays_behind_whatever_happens() -> None:
    model = chain()
    names = set(model.state_dict())
    with watch(model, read=["*"]):
        assert model[0].watched("product")
        assert not model[0].watched("other")
        assert set(model.state_dict()) == names
    assert not model[0].watched("product")

    def fails(z: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watch(model, replace={"*": fails}):
        model(X)
    assert not model[0].watched("product")
    torch.testing.assert_close(model(X), 3 * (2 * X + 1) + 1)


def test_names_that_are_not_there_are_refused_with_those_that_are() -> None:
    model = chain()
    known = r"the model has \*\.product, \*\.\*\.product"
    for given in ({"read": ["0.sum"]}, {"replace": {"0.sum": X}}, {"read": ["*", "2"]}):
        with pytest.raises(ValueError, match=known), watch(model, **given):
            pass
    with pytest.raises(ValueError, match="the model has none"), watch(nn.Linear(2, 3), read=["*"]):
        pass
    with pytest.raises(ValueError, match=r"got the string '\*'"), watch(model, read="*"):
        pass
    with watch(model, read=["0.product"]) as seen:
        with pytest.raises(KeyError, match="not visited"):
            seen["0.product"]
        with pytest.raises(KeyError, match="name it in read"):
            seen["1.0.product"]
    assert "0.product" not in seen


@pytest.mark.parametrize("made", [X[:2], lambda z: z[:2], lambda z: 3.0])
def test_what_does_not_fit_is_refused_by_name(made: Any) -> None:
    model = chain()
    with (
        pytest.raises(ValueError, match=r"replaces 0.product must be .* shape \(3,\), got"),
        watch(model, replace={"0.product": made}),
    ):
        model(X)


def test_a_module_in_several_places_is_told_apart_by_what_is_around_it() -> None:
    shared = Affine(2.0)
    model = nn.Sequential(Around(shared), Around(shared))
    with watch(model, read=["*.product"], replace={"1.inner.product": lambda z: -z}) as seen:
        y = model(X)
    assert torch.equal(seen["0.inner.product"], 2 * X)
    assert torch.equal(seen["1.inner.product"], -2 * (2 * X + 1))
    assert torch.equal(y, -2 * (2 * X + 1) + 1)
    blind = nn.Sequential(shared, shared)
    with (
        pytest.raises(ValueError, match="one module is 0 and 1, and nothing tells"),
        watch(blind, read=["*"]),
    ):
        pass
    assert torch.equal(model(X), blind(X))
