"""Sparse autoencoders, probes with controls, and tests of faithfulness."""

import itertools
import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from companion.pretraining.transfer import linear_probe
from companion.trust.interpretability import (
    SparseAutoencoder,
    autoencoder_report,
    control_labels,
    erasure,
    kendall_tau,
    online_code_length,
    probe_selectivity,
    random_erasure,
    rationale_objective,
    rationale_surrogate,
    train_autoencoder,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def autoencoder(k: int | None = None) -> SparseAutoencoder:
    return SparseAutoencoder(5, 11, k=k, generator=seeded(), dtype=torch.float64)


def test_encoding_and_decoding_by_hand() -> None:
    sae, x = autoencoder(), draw(7, 5)
    with torch.no_grad():
        sae.encoder_bias.copy_(draw(11, seed=1))
        sae.center.copy_(draw(5, seed=2))
    f = ((x - sae.center) @ sae.encoder + sae.encoder_bias).clamp(min=0)
    torch.testing.assert_close(sae.encode(x), f)
    torch.testing.assert_close(sae(x), f @ sae.decoder + sae.center)
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(11).double())
    torch.testing.assert_close(sae.encoder, sae.decoder.T)
    assert sae.encoder.data_ptr() != sae.decoder.data_ptr()


def test_k_keeps_the_largest() -> None:
    x = draw(7, 5)
    whole, kept = autoencoder().encode(x), autoencoder(2).encode(x)
    assert bool(((kept > 0).sum(1) <= 2).all())
    for row, want in zip(kept, whole, strict=True):
        torch.testing.assert_close(row.sort().values[-2:], want.sort().values[-2:])
        assert torch.equal(row[row > 0], want[row > 0])


def test_training_finds_directions_that_are_there() -> None:
    # Three orthogonal directions, one at a time.
    true = torch.linalg.qr(draw(5, 3))[0].T
    which = torch.randint(3, (900,), generator=seeded(1))
    x = true[which] * (1 + torch.rand(900, 1, generator=seeded(2), dtype=torch.float64))
    sae = SparseAutoencoder(5, 6, k=1, generator=seeded(3), dtype=torch.float64)
    before = x.clone()
    losses = train_autoencoder(sae, x, steps=600, batch_size=128, lr=0.02, generator=seeded(4))
    assert torch.equal(x, before)
    assert len(losses) == 600
    assert sum(losses[-20:]) < 0.1 * sum(losses[:20])
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(6).double())
    report = autoencoder_report(sae, x)
    assert report.active <= 1
    assert report.explained > 0.9


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_training_is_adam_with_a_falling_rate_and_unit_rows(penalty: float) -> None:
    sae, x = autoencoder(), draw(40, 5, seed=1) + 2
    parts = [p.detach().clone() for p in (sae.encoder, sae.encoder_bias, sae.center, sae.decoder)]
    losses = train_autoencoder(
        sae, x, steps=7, penalty=penalty, lr=0.02, batch_size=13, generator=seeded(6)
    )
    W_e, b_e, b_d, W_d = (p.requires_grad_() for p in parts)
    rule, g = torch.optim.Adam([W_e, b_e, b_d, W_d], lr=0.02), seeded(6)
    with torch.no_grad():
        b_d.copy_(x.mean(0))
    for step in range(7):
        rule.param_groups[0]["lr"] = 0.02 * (7 - step) / 7
        some = x[torch.randint(40, (13,), generator=g)]
        f = ((some - b_d) @ W_e + b_e).clamp(min=0)
        loss = ((some - f @ W_d - b_d) ** 2).sum() / 13 + penalty * f.abs().sum() / 13
        rule.zero_grad()
        loss.backward()
        rule.step()
        with torch.no_grad():
            W_d.div_(W_d.norm(dim=1, keepdim=True))
        assert abs(losses[step] - float(loss.detach())) < 1e-10
    learned = (sae.encoder, sae.encoder_bias, sae.center, sae.decoder)
    for ours, theirs in zip(learned, parts, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_random_directions_stay() -> None:
    sae = autoencoder(3)
    rows = sae.decoder.detach().clone()
    train_autoencoder(sae, draw(50, 5), steps=5, generator=seeded(), directions=False)
    assert torch.equal(sae.decoder, rows)
    assert not torch.equal(sae.encoder, rows.T)
    assert all(p.grad is None for p in sae.parameters())


def test_a_penalty_makes_features_few() -> None:
    active = []
    for penalty in (0.0, 1.0, 5.0):
        sae = autoencoder()
        train_autoencoder(
            sae, draw(200, 5), steps=300, penalty=penalty, lr=0.01, generator=seeded()
        )
        active.append(autoencoder_report(sae, draw(200, 5, seed=8)).active)
    assert active[0] > active[1] > active[2]


def test_the_report_counts() -> None:
    sae, x = autoencoder(), draw(31, 5)
    with torch.no_grad():
        sae.encoder_bias[3] = -1e6
    report = autoencoder_report(sae, x, batch_size=7)
    f = sae.encode(x)
    assert report.active == float((f > 0).sum()) / 31
    assert bool(report.dead[3])
    assert torch.equal(report.dead, ~(f > 0).any(0))
    lost = (x - sae(x).detach()).square().sum() / (x - x.mean(0)).square().sum()
    assert abs(report.explained - (1 - float(lost))) < 1e-12


def test_autoencoders_refuse_what_does_not_fit() -> None:
    for call, said in (
        (lambda: autoencoder(12), "k must be from 1 to 11, got 12"),
        (
            lambda: train_autoencoder(autoencoder(), draw(3, 4), steps=1, generator=seeded()),
            "shape",
        ),
        (
            lambda: train_autoencoder(
                autoencoder(), draw(3, 5), steps=1, penalty=-1.0, generator=seeded()
            ),
            "penalty",
        ),
        (
            lambda: train_autoencoder(
                autoencoder(), torch.full((3, 5), torch.nan), steps=1, generator=seeded()
            ),
            "activations",
        ),
        (lambda: autoencoder_report(autoencoder(), draw(0, 5)), "activations must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_control_labels_belong_to_types() -> None:
    types = torch.randint(40, (4000,), generator=seeded())
    labels = (torch.arange(4000) % 10 == 0).long()  # one in ten
    control = control_labels(types, labels, generator=seeded(1))
    for kind in range(40):
        assert len(control[types == kind].unique()) == 1
    assert not torch.equal(control, labels)
    again = [control_labels(types, labels, generator=seeded(seed)) for seed in (1, 7)]
    assert torch.equal(again[0], control)
    assert not torch.equal(again[1], control)
    many = control_labels(torch.arange(4000), labels, generator=seeded(2))
    assert abs(float(many.double().mean()) - 0.1) < 4 * math.sqrt(0.09 / 4000)


def test_the_control_is_another_task_than_the_true_one() -> None:
    n = 300
    h = draw(n, 5)
    labels = (h[:, 0] > 0).long()
    control = control_labels(torch.arange(n), labels, generator=seeded(3))
    held_out = torch.arange(n) >= 200
    told = probe_selectivity(h, labels, control, held_out=held_out, l2=1e-3)
    assert told.accuracy > 0.9
    assert told.control < 0.65
    assert told.selectivity == told.accuracy - told.control
    with pytest.raises(ValueError, match="both True and False"):
        probe_selectivity(h, labels, control, held_out=held_out & False, l2=1e-3)


@pytest.mark.usefixtures("own_checks")
def test_a_probe_needs_a_label_for_each_row() -> None:
    y = torch.arange(6) % 2
    with pytest.raises(ValueError, match="features must have shape"):
        probe_selectivity(draw(5, 3), y, y, held_out=y == 1, l2=0.1)


def test_classes_that_training_lacks_are_mistakes() -> None:
    h, labels = draw(12, 3), torch.tensor([0, 2] * 5 + [1, 1])
    held_out = torch.arange(12) >= 8
    told = probe_selectivity(h, labels, torch.zeros(12).long(), held_out=held_out, l2=0.1)
    assert told.accuracy <= 0.5
    assert told.control == 1.0


@pytest.mark.parametrize("cuts", [(4, 11), (1, 9)])
def test_the_code_by_hand(cuts: tuple[int, int]) -> None:
    h, y = draw(23, 3), torch.randint(3, (23,), generator=seeded(5))
    length = cuts[0] * math.log(3)
    for start, end in (cuts, (cuts[1], 23)):
        names = y[:start].unique().tolist()
        known = torch.tensor([names.index(int(k)) for k in y[:start]])
        probe = linear_probe(h[:start], known, l2=0.1) if len(names) > 1 else None
        for i in range(start, end):
            p = [1.0] if probe is None else probe(h[i : i + 1]).softmax(-1)[0].tolist()
            mine = p[names.index(int(y[i]))] if int(y[i]) in names else 0.0
            length -= math.log((start * mine + 1) / (start + 3))
    found = online_code_length(h, y, cuts=cuts, l2=0.1, classes=3)
    assert abs(found - length) < 1e-9


def test_a_code_is_short_where_features_tell_and_its_cuts_ascend() -> None:
    h, y = draw(23, 3), torch.randint(3, (23,), generator=seeded(5))
    told = online_code_length(
        10 * draw(200, 1), (draw(200, 1)[:, 0] > 0).long(), cuts=(20,), l2=1e-3
    )
    assert told < 0.5 * 200 * math.log(2)  # labels that the features tell are cheap
    for cuts in ((), (0, 5), (5, 5), (5, 23)):
        with pytest.raises(ValueError, match="cuts must ascend"):
            online_code_length(h, y, cuts=cuts, l2=0.1)


C = torch.tensor([0.5, -1.0, 3.0, 2.0, 0.1], dtype=torch.float64)


def bag(keep: Tensor) -> Tensor:
    return 0.7 + keep.double() @ C


def test_erasure_of_a_bag_of_words_is_known() -> None:
    made = erasure(bag, C, ratios=(0.0, 0.2, 0.4, 1.0))
    want = torch.tensor([0.0, 3.0, 5.0, 4.6]).double()
    torch.testing.assert_close(made.comprehensiveness, want)
    torch.testing.assert_close(made.sufficiency, 4.6 - want)
    # No other order takes more.
    for order in itertools.permutations(range(5)):
        other = erasure(bag, torch.tensor(order).float(), ratios=(0.2, 0.4))
        assert bool((other.comprehensiveness <= want[1:3] + 1e-12).all())
        assert bool((other.sufficiency >= 4.6 - want[1:3] - 1e-12).all())


def test_equal_scores_are_taken_in_the_order_of_the_inputs() -> None:
    n = 101
    one_each = 2.0 ** -torch.arange(n).double()  # the sum tells which ones were taken
    made = erasure(lambda keep: keep.double() @ one_each, torch.zeros(n), ratios=(0.1,))
    assert float(made.comprehensiveness) == float(one_each[:10].sum())
    # At least one input is taken, unless none is asked for; halves are rounded to even numbers.
    few = erasure(bag, C, ratios=(0.01, 0.0, 0.5))
    torch.testing.assert_close(few.comprehensiveness, torch.tensor([3.0, 0.0, 5.0]).double())
    torch.testing.assert_close(few.ratios, torch.tensor([0.01, 0.0, 0.5]).double())


def test_random_erasure_is_the_mean_of_all_orders() -> None:
    made = random_erasure(bag, 5, draws=4000, ratios=(0.4,), generator=seeded())
    assert made.comprehensiveness.shape == (4000, 1)
    # Two of five: 2/5 of the sum; a spread of at most 1.6 over 4,000 draws.
    assert abs(float(made.comprehensiveness.mean()) - 0.4 * 4.6) < 4 * 1.6 / math.sqrt(4000)


def test_erasure_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="ratio must lie"):
        erasure(bag, C, ratios=(1.2,))
    with pytest.raises(ValueError, match="scores"):
        erasure(bag, torch.full((5,), torch.nan))
    with pytest.raises(ValueError, match="what value returns"):
        erasure(lambda keep: keep.double(), C)


def test_labels_must_be_classes() -> None:
    h, y = draw(5, 2), torch.tensor([0, 2, 1, 0, 1])
    for labels in (y, y - 1):
        with pytest.raises(ValueError, match="labels must be from 0 to 1"):
            online_code_length(h, labels, cuts=(2,), l2=0.1, classes=2)
    with pytest.raises(ValueError, match="tokens must be 1 or more"):
        online_code_length(h[:0], y[:0], cuts=(2,), l2=0.1)


def test_ranks_of_what_is_not_finite() -> None:
    x = torch.tensor([1.0, torch.inf, torch.inf, -torch.inf])
    y = torch.tensor([1.0, 2.0, 3.0, 0.0])
    want = scipy.stats.kendalltau([1, 9, 9, -9], y).statistic
    assert abs(float(kendall_tau(x, y)) - want) < 1e-12
    assert bool(kendall_tau(y, torch.tensor([1.0, torch.nan, 2.0, 0.0])).isnan())


@given(
    seed=st.integers(0, 9999),
    n=st.integers(2, 9),
    grid=st.sampled_from([1, 2, 1000]),
)
def test_kendalls_tau_is_scipys(seed: int, n: int, grid: int) -> None:
    x, y = ((grid * draw(n, seed=seed + k)).round() for k in (0, 1))
    ours = float(kendall_tau(x, y))
    theirs = float(scipy.stats.kendalltau(x, y).statistic)
    assert (math.isnan(ours) and math.isnan(theirs)) or abs(ours - theirs) < 1e-12
    both = torch.stack([x, y])
    torch.testing.assert_close(
        kendall_tau(both, both.flip(0))[0], torch.tensor(ours).double(), equal_nan=True
    )


@pytest.mark.usefixtures("own_checks")
def test_the_surrogate_has_the_gradient_of_the_expectation() -> None:
    theta = draw(3).requires_grad_()
    choices = torch.tensor(list(itertools.product([False, True], repeat=3)))
    J = rationale_objective(draw(8, seed=1), choices, price=0.3)
    torch.testing.assert_close(J, draw(8, seed=1) - 0.3 * choices.double().sum(1))
    chance = torch.where(choices, theta.sigmoid(), 1 - theta.sigmoid()).prod(1)
    (want,) = torch.autograd.grad((chance * J).sum(), theta, retain_graph=True)
    for baseline in (0.0, 1.7):
        told = rationale_surrogate(theta.expand(8, 3), choices, J, baseline=baseline)
        (found,) = torch.autograd.grad((chance.detach() * told).sum(), theta, retain_graph=True)
        torch.testing.assert_close(found, want)
    with pytest.raises(ValueError, match="price must lie"):
        rationale_objective(draw(8), choices, price=-0.1)
    with pytest.raises(ValueError, match="kept"):
        rationale_surrogate(theta, choices, J)
