"""Linear layers that are replaced and put back, rows of one matrix, ties."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from companion.core import (
    LinearLike,
    LinearPlace,
    linear_places,
    replace_linears,
    restore_linears,
)


class Fused(nn.Module):
    """Two maps in one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(3, 7, dtype=torch.float64)

    def linear_maps(self) -> dict[str, dict[str, tuple[int, int]]]:
        return {"both": {"left": (0, 2), "right": (2, 7)}}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.both(x)
        return out


class LowRank(LinearLike):
    """The best approximation of a matrix by one of low rank, in two factors."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        U, S, Vh = torch.linalg.svd(linear.weight.detach())
        self.left = nn.Parameter(U[:, :rank] * S[:rank])
        self.right = nn.Parameter(Vh[:rank])
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        return self.left @ self.right

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.right.T @ self.left.T
        return out if self.bias is None else out + self.bias


class Tied(nn.Module):
    """A table that is the output layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.tokens.weight


class Untieable(Tied):
    def untie(self) -> None:
        self.head.weight = nn.Parameter(self.head.weight.detach().clone())


def model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(Fused(), nn.Linear(7, 5, dtype=torch.float64), nn.ReLU())


def test_places_are_named_maps_and_otherwise_attributes() -> None:
    assert linear_places(model()) == (
        LinearPlace("1", {"1": (0, 5)}),
        LinearPlace("0.both", {"left": (0, 2), "right": (2, 7)}),
    )
    assert linear_places(Fused())[0].path == "both"
    assert linear_places(nn.ReLU()) == ()


@pytest.mark.parametrize(
    ("targets", "paths", "maps"),
    [
        (["left"], ["0.both"], [["left"]]),
        (["right", "left"], ["0.both"], [["left", "right"]]),
        (["0.r*"], ["0.both"], [["right"]]),
        (["*"], ["1", "0.both"], [["1"], ["left", "right"]]),
    ],
)
def test_targets_are_maps_or_their_paths(
    targets: list[str], paths: list[str], maps: list[list[str]]
) -> None:
    places: list[LinearPlace] = []

    def make(linear: Any, place: LinearPlace) -> nn.Module:
        places.append(place)
        return nn.Identity()

    old = replace_linears(model(), targets, make)
    assert list(old) == [place.path for place in places] == paths
    assert [list(place.maps) for place in places] == maps


def test_a_matrix_in_factors_stands_where_the_matrix_stood_and_goes_again() -> None:
    made, x = model(), torch.randn(11, 3, dtype=torch.float64)
    plain, names = made(x), list(made.state_dict())
    old = replace_linears(made, ["*"], lambda linear, place: LowRank(linear, 3))
    torch.testing.assert_close(made[0](x), old["0.both"](x))  # a 7 x 3 matrix has rank 3
    singular = torch.linalg.svdvals(old["1"].weight)
    lost = (made[1].weight - old["1"].weight).square().sum()
    torch.testing.assert_close(lost, singular[3:].square().sum())  # Eckart and Young
    assert set(made.state_dict()) == {
        *(f"0.both.{name}" for name in ("left", "right", "bias")),
        *(f"1.{name}" for name in ("left", "right", "bias")),
    }
    assert [place.path for place in linear_places(made)] == ["1", "0.both"]  # one layer each
    restore_linears(made, old)
    assert torch.equal(made(x), plain)
    assert list(made.state_dict()) == names


def test_a_layer_in_several_places_is_replaced_once() -> None:
    linear, made = nn.Linear(3, 3), []

    def make(found: Any, place: LinearPlace) -> nn.Module:
        made.append(nn.Identity())
        return made[-1]

    both = nn.Sequential(linear, linear)
    old = replace_linears(both, ["*"], make)
    assert both[0] is both[1] is made[0]
    assert len(made) == 1
    restore_linears(both, old)
    assert both[0] is both[1] is linear


def test_a_shared_weight_is_untied_or_refused() -> None:
    tied, can = Tied(), Untieable()
    with pytest.raises(ValueError, match=r"head shares its weight .* no method untie"):
        replace_linears(tied, ["head"], lambda linear, place: nn.Identity())
    assert isinstance(tied.head, nn.Linear)
    seen: list[Tensor] = []

    def make(linear: Any, place: LinearPlace) -> nn.Module:
        seen.append(linear.weight)
        return linear

    replace_linears(can, ["head"], make)
    assert seen[0] is not can.tokens.weight
    assert torch.equal(seen[0], can.tokens.weight)


def test_targets_that_are_not_there_are_refused_and_nothing_changes() -> None:
    made = model()
    for targets, message in (
        (["left", "up", "q"], "the model has no up, q; it has 1, left, right"),
        ([], r"targets must be a list of names of linear maps, got \[\]"),
        ("left", "targets must be a list of names of linear maps, got 'left'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace_linears(made, targets, lambda linear, place: nn.Identity())

    def fails(linear: Any, place: LinearPlace) -> nn.Module:
        if place.path == "0.both":
            raise ZeroDivisionError
        return nn.Identity()

    with pytest.raises(ZeroDivisionError):
        replace_linears(made, ["*"], fails)
    assert all(isinstance(layer, nn.Linear) for layer in (made[0].both, made[1]))
    with pytest.raises(AttributeError):
        restore_linears(made, {"3.both": nn.Identity()})
