"""Softmax, cross-entropy and their hand-written backward passes."""

import math

import pytest
import scipy.special
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.foundations.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    entropy,
    log_softmax,
    logsumexp,
    softmax,
    softmax_jacobian,
    softmax_vjp,
    z_loss,
)

B, T, K = 3, 5, 7
# A sum of K terms of order 1 in float64 carries a few rounding units of 1.1e-16.
EXACT = {"rtol": 1e-13, "atol": 1e-14}

finite = st.floats(-50, 50, allow_nan=False, width=32)
rows = st.lists(finite, min_size=2, max_size=11)


def draw(*shape: int, g: torch.Generator, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


def ids(*shape: int, g: torch.Generator, size: int = K) -> torch.Tensor:
    return torch.randint(0, size, shape, generator=g)


def distributions(*shape: int, g: torch.Generator) -> torch.Tensor:
    made = torch.rand(*shape, generator=g, dtype=torch.float64) + 0.01
    return made / made.sum(-1, keepdim=True)


# --- softmax, log-softmax, log-sum-exp ------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_softmax_family_agrees_with_scipy(g: torch.Generator, dim: int) -> None:
    z = draw(B, T, K, g=g)
    for ours, theirs in (
        (softmax(z, dim=dim), scipy.special.softmax(z.numpy(), axis=dim)),
        (log_softmax(z, dim=dim), scipy.special.log_softmax(z.numpy(), axis=dim)),
        (logsumexp(z, dim=dim), scipy.special.logsumexp(z.numpy(), axis=dim)),
    ):
        torch.testing.assert_close(ours, torch.from_numpy(theirs), **EXACT)


def test_softmax_family_agrees_with_torch_on_masked_and_infinite_rows() -> None:
    inf = math.inf
    z = torch.tensor([[1.0, -inf, 2.0], [-inf, -inf, 0.5], [-1e30, 1e30, 0.0], [3e38, 3e38, -3e38]])
    torch.testing.assert_close(softmax(z), torch.softmax(z, -1))
    torch.testing.assert_close(log_softmax(z), torch.log_softmax(z, -1))
    torch.testing.assert_close(logsumexp(z), torch.logsumexp(z, -1))


def test_logsumexp_of_nothing_is_minus_infinity_and_softmax_of_nothing_is_nan() -> None:
    z = torch.full((2, 3), -math.inf)
    assert torch.isneginf(logsumexp(z)).all()
    assert torch.isnan(softmax(z)).all()
    assert torch.isnan(log_softmax(z)).all()


def test_logsumexp_of_plus_infinity_is_plus_infinity() -> None:
    assert logsumexp(torch.tensor([1.0, math.inf])) == math.inf


@given(rows, st.floats(-1e3, 1e3))
def test_softmax_is_shift_invariant(row: list[float], shift: float) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    # The shifted sum is rounded to 1e3 * 1.1e-16, which moves p by as much, relatively.
    torch.testing.assert_close(softmax(z + shift), softmax(z), rtol=1e-11, atol=0)


@given(rows)
def test_softmax_is_a_distribution_in_the_order_of_the_logits(row: list[float]) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    p = softmax(z)
    assert bool((p > 0).all())
    assert abs(float(p.sum()) - 1) < 1e-14
    order = z.argsort()
    assert bool((p[order].diff() >= 0).all())


@given(rows)
def test_logsumexp_lies_between_the_largest_logit_and_log_k_above(row: list[float]) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    value, largest = float(logsumexp(z)), max(row)
    assert largest - 1e-12 <= value <= largest + math.log(len(row)) + 1e-12


@given(rows, rows.filter(lambda r: len(r) > 1))
def test_logsumexp_is_associative(one: list[float], other: list[float]) -> None:
    first, second = (torch.tensor(r, dtype=torch.float64) for r in (one, other))
    parts = logsumexp(torch.stack([logsumexp(first), logsumexp(second)]))
    torch.testing.assert_close(logsumexp(torch.cat([first, second])), parts, rtol=1e-13, atol=1e-13)


@given(rows, st.floats(0.05, 20))
def test_log_probabilities_of_every_temperature_have_the_logits_as_differences(
    row: list[float], temperature: float
) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    made = log_softmax(z, temperature=temperature)
    torch.testing.assert_close(
        (made - made[0]) * temperature, z - z[0], rtol=1e-10, atol=1e-10 * temperature
    )


def test_temperature_limits_are_argmax_and_uniform(g: torch.Generator) -> None:
    z = draw(B, K, g=g)
    cold = softmax(z, temperature=1e-4)
    torch.testing.assert_close(cold, F.one_hot(z.argmax(-1), K).double())
    hot = softmax(z, temperature=1e9)
    torch.testing.assert_close(hot, torch.full_like(z, 1 / K), rtol=1e-7, atol=0)


@pytest.mark.parametrize("temperature", [1e-37, 1e-45, 1e-300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("learned", [False, True])
def test_a_tiny_temperature_gives_the_limit(
    temperature: float, dtype: torch.dtype, learned: bool
) -> None:
    # The largest logits share the probability, whatever their size; masked entries have none.
    z = torch.tensor([[1, 2, 300], [-5, 7, 7], [-torch.inf, 0, -3]], dtype=dtype)
    z.requires_grad_()
    limit = torch.tensor([[0, 0, 1], [0, 0.5, 0.5], [0, 1, 0]], dtype=dtype)
    t = torch.tensor(temperature, dtype=torch.float64) if learned else temperature
    made = softmax(z, temperature=t)
    assert torch.equal(made, limit)
    logs = log_softmax(z, temperature=t)
    # -distance / 1e-37 fits into float32 and float64, and then its logarithm is not -inf.
    torch.testing.assert_close(logs.exp(), limit, rtol=1e-2, atol=0)
    assert not logs.isnan().any()
    made.sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(z))  # the limit is flat, and no NaN


def test_log_probabilities_at_a_tiny_temperature_are_distances_over_it() -> None:
    made = log_softmax(torch.tensor([1.0, 3.0, 3.0]), temperature=1e-37)
    torch.testing.assert_close(made, torch.tensor([-2e37, -math.log(2), -math.log(2)]))


@pytest.mark.parametrize("row", [[-math.inf] * 2, [math.inf, 0.0], [math.nan, 0.0]])
def test_a_row_that_gives_no_distribution_is_nan(row: list[float]) -> None:
    for function in (softmax, log_softmax):
        made = function(torch.tensor([row, [0.0, 0.0]]))
        assert made[0].isnan().all()
        assert made[1].isfinite().all()


def test_a_learned_temperature_has_a_gradient_beside_masked_entries() -> None:
    z = torch.tensor([0.3, -math.inf, -0.7], dtype=torch.float64)
    temperature = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([0, 2])
    for function in (softmax, log_softmax):
        (grad,) = torch.autograd.grad(function(z, temperature=temperature)[0], temperature)
        (want,) = torch.autograd.grad(function(z[kept], temperature=temperature)[0], temperature)
        torch.testing.assert_close(grad, want, **EXACT)


def test_temperature_as_a_tensor_is_differentiable(g: torch.Generator) -> None:
    z = draw(B, K, g=g)
    temperature = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: softmax(z, temperature=t), temperature)
    assert torch.autograd.gradcheck(lambda t: log_softmax(z, temperature=t), temperature)


def test_softmax_family_gradients_and_second_derivatives(g: torch.Generator) -> None:
    z = draw(B, K, g=g).requires_grad_()
    for function in (softmax, log_softmax, logsumexp):
        assert torch.autograd.gradcheck(function, z)
        assert torch.autograd.gradgradcheck(function, z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_float32_result(
    dtype: torch.dtype, g: torch.Generator
) -> None:
    z = (1e4 * torch.randn(B, K, generator=g)).to(dtype)
    for function in (softmax, log_softmax, logsumexp):
        made = function(z)
        assert made.dtype == dtype
        assert torch.equal(made, function(z.float()).to(dtype))
    assert bool(torch.isfinite(softmax(z)).all())


# --- entropy ----------------------------------------------------------------------------------


def test_entropy_agrees_with_scipy_and_ignores_zeros(g: torch.Generator) -> None:
    p = distributions(B, T, K, g=g)
    p[0, 0] = F.one_hot(torch.tensor(2), K)
    expected = torch.from_numpy(scipy.special.entr(p.numpy()).sum(-1))
    torch.testing.assert_close(entropy(p), expected, **EXACT)
    assert entropy(p)[0, 0] == 0


@given(rows)
def test_entropy_lies_between_zero_and_log_k(row: list[float]) -> None:
    value = float(entropy(softmax(torch.tensor(row, dtype=torch.float64))))
    assert -1e-15 <= value <= math.log(len(row)) + 1e-12


def test_entropy_gradient_through_a_masked_softmax_is_finite_and_zero_at_the_mask() -> None:
    z = torch.tensor([0.3, -math.inf, 1.1, -0.4], dtype=torch.float64, requires_grad=True)
    p = softmax(z)
    entropy(p).backward()
    expected = torch.where(p > 0, -p * (p.log() + entropy(p)), 0.0)  # dH/dz, by hand
    torch.testing.assert_close(z.grad, expected.detach(), **EXACT)


# --- Jacobian ---------------------------------------------------------------------------------


def test_jacobian_is_that_of_autograd(g: torch.Generator) -> None:
    z = draw(K, g=g)
    expected = torch.autograd.functional.jacobian(softmax, z)
    torch.testing.assert_close(softmax_jacobian(softmax(z)), expected, **EXACT)


def test_jacobian_has_the_ones_as_null_vector_and_rank_k_minus_1(g: torch.Generator) -> None:
    jacobian = softmax_jacobian(softmax(draw(B, K, g=g, scale=1.0)))
    assert float(jacobian.sum(-1).abs().max()) < 1e-15
    eigenvalues = torch.linalg.eigvalsh(jacobian)
    assert bool((eigenvalues[:, 0].abs() < 1e-15).all())
    assert bool((eigenvalues[:, 1] > 1e-4).all())


def test_vjp_is_the_product_with_the_jacobian(g: torch.Generator) -> None:
    p, grad = softmax(draw(B, T, K, g=g)), draw(B, T, K, g=g)
    expected = torch.einsum("btj,btij->bti", grad, softmax_jacobian(p))
    torch.testing.assert_close(softmax_vjp(p, grad), expected, **EXACT)


# --- cross-entropy ----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.13])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_cross_entropy_and_gradient_agree_with_torch(
    kind: str, smoothing: float, reduction: str, g: torch.Generator
) -> None:
    z = draw(11, K, g=g).requires_grad_()
    if kind == "hard":
        y = ids(11, g=g)
        y[[2, 5]] = -100
    else:
        y = distributions(11, K, g=g)
    settings_ = {"label_smoothing": smoothing, "reduction": reduction}
    theirs = F.cross_entropy(z, y, **settings_)
    ours = cross_entropy(z, y, **settings_)
    torch.testing.assert_close(ours, theirs, **EXACT)
    (expected,) = torch.autograd.grad(theirs.sum(), z)
    (automatic,) = torch.autograd.grad(ours.sum(), z)
    torch.testing.assert_close(automatic, expected, **EXACT)
    torch.testing.assert_close(cross_entropy_backward(z, y, **settings_), expected, **EXACT)


def test_targets_of_any_rank_and_integer_dtype(g: torch.Generator) -> None:
    z, y = draw(B, T, K, g=g), ids(B, T, g=g)
    expected = F.cross_entropy(z.reshape(-1, K), y.reshape(-1))
    for dtype in (torch.int64, torch.int32, torch.int8):
        torch.testing.assert_close(cross_entropy(z, y.to(dtype), ignore_index=-1), expected)
    one = cross_entropy(z[0, 0], y[0, 0], reduction="none")
    torch.testing.assert_close(one, F.cross_entropy(z[0, 0], y[0, 0]))


@pytest.mark.parametrize("axes", [(), (B,), (B, T), (2, B, T)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_leading_axes_are_rows_one_after_the_other(
    axes: tuple[int, ...], reduction: str, g: torch.Generator
) -> None:
    z, y, soft = draw(*axes, K, g=g), ids(*axes, g=g), distributions(*axes, K, g=g)
    # One row less than there are, so that the mean is over those that count.
    y.view(-1)[0] = -100 if axes else 3
    for targets, flat in ((y, y.reshape(-1)), (soft, soft.reshape(-1, K))):
        x = z.reshape(-1, K).requires_grad_()
        loss = F.cross_entropy(x, flat, reduction=reduction)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        own = cross_entropy(z, targets, reduction=reduction)
        torch.testing.assert_close(own.reshape(-1), loss.detach().reshape(-1), **EXACT)
        made = cross_entropy_backward(z, targets, reduction=reduction)
        torch.testing.assert_close(made, grad.view(z.shape), **EXACT)
    squares = torch.logsumexp(z, -1) ** 2
    expected = squares if reduction == "none" else getattr(squares, reduction)()
    torch.testing.assert_close(z_loss(z, reduction=reduction), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_ids_in_a_type_too_narrow_for_the_number_of_classes(
    dtype: torch.dtype, g: torch.Generator
) -> None:
    classes = {torch.uint8: 307, torch.int8: 149, torch.int16: 49_157}[dtype]
    z, y = draw(3, classes, g=g), torch.tensor([0, 113, 61])
    expected = F.cross_entropy(z, y)
    torch.testing.assert_close(cross_entropy(z, y.to(dtype)), expected, **EXACT)
    torch.testing.assert_close(cross_entropy_backward(z, y.to(dtype)).sum(), z.new_zeros(()))


def test_gradients_of_single_rows_by_vmap(g: torch.Generator) -> None:
    z = draw(T, K, g=g)
    for y in (ids(T, g=g), distributions(T, K, g=g)):
        made = torch.func.vmap(torch.func.grad(cross_entropy))(z, y)
        expected = cross_entropy_backward(z, y, reduction="none")
        torch.testing.assert_close(made, expected, **EXACT)


def test_custom_ignore_index_may_be_a_class(g: torch.Generator) -> None:
    z, y = draw(11, K, g=g), ids(11, g=g)
    assert bool((y == 4).any())
    expected = F.cross_entropy(z, y, ignore_index=4)
    torch.testing.assert_close(cross_entropy(z, y, ignore_index=4), expected, **EXACT)


def test_a_batch_of_padding_has_loss_and_gradient_zero(g: torch.Generator) -> None:
    z = draw(T, K, g=g).requires_grad_()
    y = torch.full((T,), -100)
    loss = cross_entropy(z, y, label_smoothing=0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(z.grad, torch.zeros_like(z))
    assert torch.equal(cross_entropy_backward(z, y), torch.zeros_like(z))


def test_the_mean_over_no_rows_is_zero() -> None:
    z = torch.zeros(0, K)
    assert float(cross_entropy(z, torch.zeros(0, dtype=torch.int64))) == 0
    assert float(cross_entropy(z, z)) == 0
    assert float(z_loss(z)) == 0


def test_ignored_rows_may_hold_nan(g: torch.Generator) -> None:
    z, y = draw(T, K, g=g), ids(T, g=g)
    y[1] = -100
    clean = cross_entropy(z, y)
    z[1] = math.nan
    z.requires_grad_()
    loss = cross_entropy(z, y)
    loss.backward()
    assert torch.equal(loss, clean)
    assert bool(torch.isfinite(z.grad).all())
    assert bool(torch.isfinite(cross_entropy_backward(z.detach(), y)).all())


def test_masked_classes_cost_nothing_unless_they_are_the_target(g: torch.Generator) -> None:
    z = draw(T, K, g=g)
    z[:, 3] = -math.inf
    y = torch.tensor([0, 1, 2, 4, 5])
    kept = [0, 1, 2, 4, 5, 6]
    position = torch.tensor([0, 1, 2, 3, 4])
    expected = F.cross_entropy(z[:, kept], position)
    torch.testing.assert_close(cross_entropy(z, y), expected, **EXACT)
    torch.testing.assert_close(cross_entropy(z, F.one_hot(y, K).double()), expected, **EXACT)
    assert cross_entropy(z, torch.full((T,), 3)) == math.inf


def test_soft_targets_are_differentiable_too(g: torch.Generator) -> None:
    z, y = draw(T, K, g=g).requires_grad_(), distributions(T, K, g=g).requires_grad_()
    assert torch.autograd.gradcheck(cross_entropy, (z, y))


@given(rows, st.data())
def test_soft_form_and_hard_form_agree(row: list[float], data: st.DataObject) -> None:
    z = torch.tensor([row], dtype=torch.float64)
    k = data.draw(st.integers(0, len(row) - 1))
    one_hot = F.one_hot(torch.tensor([k]), len(row)).double()
    hard = cross_entropy(z, torch.tensor([k]))
    torch.testing.assert_close(hard, cross_entropy(z, one_hot), rtol=0, atol=1e-12)
    assert float(hard) >= -1e-12


@given(rows, rows)
@settings(max_examples=50)
def test_cross_entropy_is_least_at_the_target_distribution(
    one: list[float], other: list[float]
) -> None:
    n = min(len(one), len(other))
    y = softmax(torch.tensor([one[:n]], dtype=torch.float64))
    z = torch.tensor([other[:n]], dtype=torch.float64)
    assert float(cross_entropy(z, y)) >= float(entropy(y)[0]) - 1e-10


@given(rows, st.data())
def test_gradient_sums_to_zero_and_its_norm_is_at_most_root_two(
    row: list[float], data: st.DataObject
) -> None:
    z = torch.tensor([row], dtype=torch.float64)
    k = data.draw(st.integers(0, len(row) - 1))
    grad = cross_entropy_backward(z, torch.tensor([k]))
    assert abs(float(grad.sum())) < 1e-14
    assert float(grad.norm()) <= math.sqrt(2) + 1e-14


def test_huge_logits_give_a_finite_loss_and_gradient_in_every_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        z = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
        loss = cross_entropy(z, torch.tensor([1]))
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # bfloat16 rounds 1e4 to 9984.
        assert float(loss.detach()) == pytest.approx(float(z[0, 0] - z[0, 1]))
        grad = cross_entropy_backward(z, torch.tensor([1]))
        assert grad.dtype == dtype
        assert grad.tolist() == [[1.0, -1.0, 0.0]]


def test_z_loss_is_the_squared_logsumexp_with_its_gradient(g: torch.Generator) -> None:
    z = draw(T, K, g=g).requires_grad_()
    lse = torch.logsumexp(z, -1)
    torch.testing.assert_close(z_loss(z, reduction="none"), lse**2, **EXACT)
    torch.testing.assert_close(z_loss(z, reduction="sum"), (lse**2).sum(), **EXACT)
    (grad,) = torch.autograd.grad(z_loss(z), z)
    expected = 2 * lse.unsqueeze(1) * torch.softmax(z, -1) / T
    torch.testing.assert_close(grad, expected, **EXACT)


# --- manners ----------------------------------------------------------------------------------


def test_nothing_writes_into_its_inputs(g: torch.Generator) -> None:
    z, y, soft = draw(T, K, g=g), ids(T, g=g), distributions(T, K, g=g)
    y[0] = -100
    copies = [t.clone() for t in (z, y, soft)]
    softmax(z), log_softmax(z), logsumexp(z), entropy(soft), softmax_jacobian(soft)
    softmax_vjp(soft, z), z_loss(z), cross_entropy(z, y), cross_entropy(z, soft)
    cross_entropy_backward(z, y), cross_entropy_backward(z, soft)
    assert all(torch.equal(a, b) for a, b in zip((z, y, soft), copies, strict=True))


def test_everything_runs_on_meta() -> None:
    z = torch.empty(T, K, device="meta")
    y, soft = torch.empty(T, device="meta", dtype=torch.int64), torch.empty(T, K, device="meta")
    for made, shape in (
        (softmax(z, temperature=0.7), (T, K)),
        (log_softmax(z), (T, K)),
        (logsumexp(z), (T,)),
        (entropy(soft), (T,)),
        (softmax_jacobian(soft), (T, K, K)),
        (softmax_vjp(soft, z), (T, K)),
        (cross_entropy(z, y, label_smoothing=0.1), ()),
        (cross_entropy(z, soft, reduction="none"), (T,)),
        (cross_entropy_backward(z, y), (T, K)),
        (cross_entropy_backward(z, soft), (T, K)),
        (z_loss(z), ()),
    ):
        assert made.is_meta
        assert tuple(made.shape) == shape


def test_devices_agree(device: torch.device, g: torch.Generator) -> None:
    z, y = draw(T, K, g=g).float(), ids(T, g=g)
    made = cross_entropy(z.to(device), y.to(device))
    assert made.device.type == device.type
    torch.testing.assert_close(made.cpu(), F.cross_entropy(z, y), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(softmax(z.to(device)).cpu(), torch.softmax(z, -1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    for function in (softmax, log_softmax):
        with pytest.raises(ValueError, match=r"temperature must lie in \(0\.0, inf\]"):
            function(torch.zeros(3), temperature=temperature)


@pytest.mark.usefixtures("own_checks")
def test_wrong_shapes_and_dtypes_are_named() -> None:
    z = torch.zeros(5, 7)
    with pytest.raises(ValueError, match=r"shape \(5,\).*got \(3,\)"):
        cross_entropy(z, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(5, 7\) of the logits, got \(5, 3\)"):
        cross_entropy(z, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"logits must be floating, got torch.int64"):
        cross_entropy(z.long(), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"targets must hold integers, got torch.bool"):
        cross_entropy(z, torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"need an axis of classes, got shape \(\)"):
        cross_entropy(torch.tensor(1.0), torch.tensor(0))
    with pytest.raises(ValueError, match=r"along dim 2, got shape \(5, 7\)"):
        softmax(z, dim=2)
    with pytest.raises(ValueError, match=r"along dim -1, got shape \(5, 0\)"):
        logsumexp(torch.zeros(5, 0))
    with pytest.raises(ValueError, match=r"temperature must be a scalar, got shape \(5,\)"):
        softmax(z, temperature=torch.ones(5))
    with pytest.raises(ValueError, match=r"same shape, got \(5, 7\) and \(7, 5\)"):
        softmax_vjp(z, z.T)
    for function in (entropy, softmax_jacobian):
        with pytest.raises(ValueError, match="got a scalar"):
            function(torch.tensor(1.0))
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got 'max'"):
        cross_entropy(z, torch.zeros(5, dtype=torch.int64), reduction="max")
    with pytest.raises(ValueError, match="got 'max'"):
        z_loss(z, reduction="max")


def test_wrong_values_are_named() -> None:
    z = torch.zeros(2, 7)
    for wrong in (7, -1):
        with pytest.raises(ValueError, match=rf"targets must lie in \[0, 7\), got {wrong}"):
            cross_entropy(z, torch.tensor([0, wrong]))
    soft = torch.full((2, 7), 1 / 7)
    with pytest.raises(ValueError, match=r"the least is -0\.5: pass softmax"):
        cross_entropy(z, soft.index_fill(1, torch.tensor([3]), -0.5))
    with pytest.raises(ValueError, match=r"must sum to 1 in each row, got 2\.0"):
        cross_entropy(z, torch.stack([soft[0], 2 * soft[0]]))
    with pytest.raises(ValueError, match="the least is nan"):
        cross_entropy(z, soft * math.nan)
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0\.0, 1\.0\], got 1\.5"):
        cross_entropy(z, torch.tensor([0, 1]), label_smoothing=1.5)


def test_soft_targets_in_half_precision_pass() -> None:
    y = torch.softmax(torch.linspace(-2, 2, 1009), 0).bfloat16().unsqueeze(0)
    assert math.isfinite(float(cross_entropy(torch.zeros(1, 1009, dtype=torch.bfloat16), y)))
