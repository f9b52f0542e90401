"""Scores of facts: what relations they can say, on both sides, equal to complex arithmetic."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion.core import randn
from companion.knowledge.knowledge_graphs import (
    ComplEx,
    DistMult,
    LinkModel,
    RotatE,
    TransE,
    complex_bilinear,
    corrupt_facts,
    distmult,
    margin_loss,
    rotate_score,
    self_adversarial_loss,
    transe,
    turn,
)

MODELS = [TransE, DistMult, ComplEx, RotatE]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_complex(x: Tensor) -> Tensor:
    return torch.complex(*x.chunk(2, -1))


def made(kind: Callable[..., LinkModel], **how: int) -> LinkModel:
    model = kind(7, 3, dim=10, generator=torch.Generator().manual_seed(0), **how)
    return model.double()


def test_complex_score_is_that_of_complex_arithmetic() -> None:
    h, r, t = numbers(3, 5, 22)
    want = (as_complex(h) * as_complex(r) * as_complex(t).conj()).sum(-1).real
    torch.testing.assert_close(complex_bilinear(h, r, t), want)
    # h = i, r = i, t = 1: the sign that a refactoring of another library once lost.
    i, one = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    assert complex_bilinear(i, i, one) == -1
    assert not torch.allclose(complex_bilinear(h, r, t), complex_bilinear(t, r, h))


@pytest.mark.parametrize("norm", [1, 2])
def test_rotation_is_that_of_complex_arithmetic_on_either_side(norm: int) -> None:
    h, t = numbers(2, 5, 22)
    phase = numbers(5, 11, seed=1)
    turned = as_complex(h) * torch.polar(torch.ones_like(phase), phase)
    moduli = (turned - as_complex(t)).abs()
    torch.testing.assert_close(rotate_score(h, phase, t, norm=norm), -moduli.norm(norm, dim=-1))
    other = (as_complex(h) - as_complex(turn(t, -phase))).abs().norm(norm, dim=-1)
    torch.testing.assert_close(rotate_score(h, phase, t, norm=norm), -other, rtol=1e-12, atol=0)


def test_translations_and_products_by_hand() -> None:
    h, r, t = torch.tensor([[1.0, 2.0], [3.0, 0.5], [-1.0, 2.0]])
    assert transe(h, r, t, norm=1) == -5.5
    torch.testing.assert_close(transe(h, r, t), -torch.tensor(25.25).sqrt())
    assert distmult(h, r, t) == -1


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("side", ["tails", "heads"])
def test_all_candidates_have_the_score_of_their_facts(
    kind: Callable[..., LinkModel], side: str
) -> None:
    # TransR's corruption of the other side once used another formula, and reported a better MRR.
    model = made(kind)
    for how in ({},) if kind in (DistMult, ComplEx) else ({"norm": 1}, {"norm": 2}):
        model = made(kind, **how)
        given_entity, relation = torch.tensor([0, 5, 5]), torch.tensor([2, 0, 1])
        everyone = torch.arange(7).expand(3, 7)
        one, which = given_entity[:, None].expand(3, 7), relation[:, None].expand(3, 7)
        if side == "tails":
            have = model.tails(given_entity, relation)
            want = model(torch.stack([one, which, everyone], -1))
        else:
            have = model.heads(relation, given_entity)
            want = model(torch.stack([everyone, which, one], -1))
        torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-12)


def test_distmult_is_symmetric_and_the_others_are_not() -> None:
    facts = torch.tensor([[0, 1, 3], [2, 0, 6]])
    for kind in MODELS:
        model = made(kind)
        same = torch.allclose(model(facts), model(facts.flip(1)))
        assert same == (kind is DistMult)


def test_a_symmetric_translation_puts_its_entities_on_one_point() -> None:
    # |h + r - t| = |t + r - h| = 0 gives 2r = 0, and then h = t. A rotation by 0 or pi does not.
    h, t = numbers(2, 6)
    r = t - h
    assert transe(h, r, t) > -1e-14
    torch.testing.assert_close(transe(t, r, h), -2 * (t - h).norm())
    half_turn = torch.full((3,), torch.pi, dtype=torch.float64)
    other = turn(h, half_turn)
    assert not torch.allclose(other, h)
    both = torch.stack([rotate_score(h, half_turn, other), rotate_score(other, half_turn, h)])
    torch.testing.assert_close(both, torch.zeros_like(both), rtol=0, atol=1e-14)


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_rotations_compose_and_invert(a: float, b: float) -> None:
    x = numbers(6)
    first, second = (torch.full((3,), angle, dtype=torch.float64) for angle in (a, b))
    torch.testing.assert_close(turn(turn(x, first), second), turn(x, first + second))
    torch.testing.assert_close(turn(turn(x, first), -first), x)
    torch.testing.assert_close(turn(x, first).norm(), x.norm())


def test_complex_can_say_any_relation() -> None:
    # X + iX' is normal for every real X, so a unitary matrix makes it diagonal, and X is its real
    # part (Trouillon et al. 2017). The table here is not symmetric.
    table = numbers(5, 5)
    w, E = torch.linalg.eig(table + 1j * table.T)
    torch.testing.assert_close(E @ E.conj().T, torch.eye(5).cdouble())
    entity = torch.cat([E.real, E.imag], 1)
    relation = torch.cat([w.real, w.imag])
    have = complex_bilinear(entity[:, None], relation, entity[None])
    torch.testing.assert_close(have, table, rtol=1e-9, atol=1e-9)


def test_a_corrupted_fact_differs_in_one_place() -> None:
    g = torch.Generator().manual_seed(0)
    facts = torch.tensor([[0, 2, 4], [3, 1, 0]])
    before = facts.clone()
    wrong = corrupt_facts(facts, entities=5, count=4001, generator=g)
    changed = wrong != facts[:, None]
    assert bool((changed.sum(-1) == 1).all())
    assert not bool(changed[..., 1].any())
    # Each other entity, on each side, equally often: 8 outcomes, standard error below 11.
    for row, fact in enumerate(facts.tolist()):
        for side in (0, 2):
            drawn = wrong[row][changed[row, :, side], side]
            counts = torch.bincount(drawn, minlength=5)
            assert counts[fact[side]] == 0
            others = counts[[e for e in range(5) if e != fact[side]]].double()
            assert float((others - 4001 / 8).abs().max()) < 5 * (4001 / 8 * 7 / 8) ** 0.5
    assert torch.equal(facts, before)


def test_margin_loss_is_its_sum_of_hinges() -> None:
    true, wrong = numbers(5), numbers(5, 3, seed=1)
    pairs = zip(true, wrong, strict=True)
    hinges = [max(0.0, 0.7 + float(w) - float(t)) for t, row in pairs for w in row]
    want = torch.tensor(sum(hinges) / 15, dtype=torch.float64)
    torch.testing.assert_close(margin_loss(true, wrong, margin=0.7), want)
    assert margin_loss(true + 100, wrong, margin=0.7) == 0


def test_adversarial_weights_carry_no_gradient() -> None:
    true, wrong = numbers(5).requires_grad_(), numbers(5, 3, seed=1).requires_grad_()
    loss = self_adversarial_loss(true, wrong, margin=2.0, temperature=0.9)
    w = (0.9 * wrong.detach()).softmax(1)
    far = (w * torch.log1p((wrong + 2).exp())).sum(1)
    want = (torch.log1p((-2 - true).exp()) + far).mean() / 2
    torch.testing.assert_close(loss, want)
    (have,) = torch.autograd.grad(loss, wrong)
    torch.testing.assert_close(have, w * (wrong + 2).sigmoid() / 10)
    even = self_adversarial_loss(true, wrong, margin=2.0, temperature=0.0)
    plain = (torch.log1p((-2 - true).exp()) + torch.log1p((wrong + 2).exp()).mean(1)).mean() / 2
    torch.testing.assert_close(even, plain)
    worst = self_adversarial_loss(true, wrong, margin=2.0, temperature=1e4)
    one = (torch.log1p((-2 - true).exp()) + torch.log1p((wrong.amax(1) + 2).exp())).mean() / 2
    torch.testing.assert_close(worst, one)


@pytest.mark.parametrize("kind", MODELS)
def test_models_learn_from_their_losses(kind: Callable[..., LinkModel]) -> None:
    model = made(kind)
    facts = torch.tensor([[0, 0, 1], [2, 1, 3], [4, 2, 6]])
    wrong = corrupt_facts(facts, entities=7, count=11, generator=torch.Generator().manual_seed(1))
    for p in model.parameters():
        assert torch.isfinite(p).all()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        margin_loss(model(facts), model(wrong), margin=0.5).backward()
        optimizer.step()
    assert bool((model(facts)[:, None] > model(wrong)).all())


def test_translations_start_and_stay_on_the_sphere() -> None:
    model = made(TransE)
    torch.testing.assert_close(
        model.relation.norm(dim=1), torch.ones(3).double(), rtol=1e-6, atol=0
    )
    before = model.relation.detach().clone()
    model.constrain()
    torch.testing.assert_close(model.entity.norm(dim=1), torch.ones(7).double())
    assert torch.equal(model.relation, before)


def test_scores_have_finite_gradients_where_the_distance_is_zero() -> None:
    for norm in (1, 2):
        h = torch.zeros(4, requires_grad=True)
        rotate_score(h, torch.zeros(2), torch.zeros(4), norm=norm).backward()
        assert torch.isfinite(h.grad).all()
        h = torch.zeros(4, requires_grad=True)
        transe(h, torch.zeros(4), torch.zeros(4), norm=norm).backward()
        assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("kind", MODELS)
def test_models_run_without_numbers(kind: Callable[..., LinkModel]) -> None:
    model = made(kind).to("meta")
    ids = torch.zeros(5, dtype=torch.long, device="meta")
    assert model.tails(ids, ids).shape == (5, 7)
    assert model.heads(ids, ids).shape == (5, 7)
    assert model(torch.zeros(2, 3, 3, dtype=torch.long, device="meta")).shape == (2, 3)


def test_losses_run_without_numbers() -> None:
    true, wrong = torch.zeros(3, device="meta"), torch.zeros(3, 2, device="meta")
    assert margin_loss(true, wrong, margin=1.0).shape == ()
    assert self_adversarial_loss(true, wrong, margin=1.0, temperature=1.0).shape == ()
    facts = torch.zeros(2, 3, dtype=torch.long, device="meta")
    made_up = corrupt_facts(facts, entities=5, count=3, generator=torch.Generator().manual_seed(0))
    assert made_up.shape == (2, 3, 3)


@pytest.mark.usefixtures("own_checks")
def test_refusals_say_what_to_do() -> None:
    x = torch.zeros(3)
    g = torch.Generator()
    with pytest.raises(ValueError, match="one width"):
        transe(x, torch.zeros(2), x)
    with pytest.raises(ValueError, match="norm must be 1 or 2"):
        transe(x, x, x, norm=3)
    with pytest.raises(ValueError, match="even width"):
        complex_bilinear(x, x, x)
    with pytest.raises(ValueError, match=r"need 1\.5 angles"):
        rotate_score(x, torch.zeros(2), x)
    with pytest.raises(ValueError, match="must be floating"):
        distmult(x.long(), x.long(), x.long())
    with pytest.raises(ValueError, match="dim must be even"):
        RotatE(3, 2, dim=5, generator=g)
    with pytest.raises(ValueError, match="entities must be 2 or more"):
        ComplEx(1, 2, dim=4, generator=g)
    model = DistMult(3, 2, dim=5, generator=g)
    with pytest.raises(ValueError, match=r"relations must lie in \[0, 2\)"):
        model(torch.tensor([[0, 2, 1]]))
    with pytest.raises(ValueError, match=r"heads must lie in \[0, 3\)"):
        model.tails(torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(ValueError, match="facts must have shape"):
        corrupt_facts(torch.zeros(3, 2, dtype=torch.long), entities=3, count=1, generator=g)
    with pytest.raises(ValueError, match="margin must lie"):
        margin_loss(x, torch.zeros(3, 2), margin=0.0)
    with pytest.raises(ValueError, match="wrong must have shape"):
        margin_loss(x, torch.zeros(2, 3), margin=1.0)
    with pytest.raises(ValueError, match="temperature must lie"):
        self_adversarial_loss(x, torch.zeros(3, 2), margin=1.0, temperature=-1.0)
    with pytest.raises(ValueError, match="needs a true fact"):
        margin_loss(torch.zeros(0), torch.zeros(0, 2), margin=1.0)
