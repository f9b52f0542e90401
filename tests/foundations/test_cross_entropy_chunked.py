"""The chunked loss: equal to the plain one, at a fraction of its memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.foundations.cross_entropy import chunked_cross_entropy, linear_cross_entropy
from companion.verify import count_flops, peak_bytes

N, D, V = 11, 5, 13
# Gradients are sums of N or V products of order 1 in float64.
EXACT = {"rtol": 1e-12, "atol": 1e-14}


def problem(
    g: torch.Generator, *, n: int = N, d: int = D, v: int = V, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(d, v, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, v, (n,), generator=g)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.17])
@pytest.mark.parametrize("chunk_size", [1, 3, N, 97, None])
def test_value_and_gradients_agree_with_torch(
    chunk_size: int | None, smoothing: float, reduction: str, g: torch.Generator
) -> None:
    hidden, weight, targets = problem(g)
    targets[[0, 4]] = -100
    settings_ = {"label_smoothing": smoothing, "reduction": reduction}
    # An upstream gradient other than 1, to see that it is carried through.
    theirs = 3 * F.cross_entropy(hidden @ weight, targets, **settings_)
    ours = 3 * chunked_cross_entropy(hidden, weight, targets, chunk_size=chunk_size, **settings_)
    plain = 3 * linear_cross_entropy(hidden, weight, targets, **settings_)
    torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close(plain, theirs, **EXACT)
    expected = torch.autograd.grad(theirs, (hidden, weight))
    for made in (ours, plain):
        for a, b in zip(torch.autograd.grad(made, (hidden, weight)), expected, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_z_weight_adds_the_squared_normalizer(reduction: str, g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    targets[2] = -100
    logits = (hidden @ weight)[targets != -100]
    squares = torch.logsumexp(logits, -1) ** 2
    theirs = F.cross_entropy(hidden @ weight, targets, reduction=reduction)
    theirs = theirs + 0.3 * (squares.mean() if reduction == "mean" else squares.sum())
    expected = torch.autograd.grad(theirs, (hidden, weight))
    for function in (chunked_cross_entropy, linear_cross_entropy):
        ours = function(hidden, weight, targets, z_weight=0.3, reduction=reduction)
        torch.testing.assert_close(ours, theirs, **EXACT)
        for a, b in zip(torch.autograd.grad(ours, (hidden, weight)), expected, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_gradients_by_finite_differences(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    targets[1] = -100

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return chunked_cross_entropy(
            h, w, targets, chunk_size=4, label_smoothing=0.1, z_weight=0.05
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight))


@given(
    n=st.integers(1, 17), chunk=st.integers(1, 19), ignored=st.integers(0, 17), seed=st.integers(0)
)
@settings(max_examples=40, deadline=None)
def test_the_chunk_size_does_not_matter(n: int, chunk: int, ignored: int, seed: int) -> None:
    hidden, weight, targets = problem(torch.Generator().manual_seed(seed % 2**31), n=n)
    targets[:ignored] = -100
    one = chunked_cross_entropy(hidden, weight, targets, chunk_size=chunk)
    other = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(one, other, **EXACT)
    for a, b in zip(
        torch.autograd.grad(one, (hidden, weight)),
        torch.autograd.grad(other, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **EXACT)


def test_a_transposed_weight_gets_its_gradient_in_its_own_layout(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    linear = torch.nn.Linear(D, V, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
    chunked_cross_entropy(hidden, linear.weight.T, targets, chunk_size=3).backward()
    expected = torch.autograd.grad(F.cross_entropy(linear(hidden), targets), linear.weight)[0]
    torch.testing.assert_close(linear.weight.grad, expected, **EXACT)
    assert linear.weight.grad.is_contiguous()


def test_tied_embedding_receives_both_gradients(g: torch.Generator) -> None:
    table = torch.randn(V, D, generator=g, dtype=torch.float64, requires_grad=True)
    tokens, targets = (torch.randint(0, V, (N,), generator=g) for _ in range(2))
    ours = chunked_cross_entropy(table[tokens], table.T, targets, chunk_size=3)
    theirs = F.cross_entropy(F.embedding(tokens, table) @ table.T, targets)
    expected = torch.autograd.grad(theirs, table)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, table)[0], expected, **EXACT)


def test_a_batch_of_padding_has_loss_and_gradients_zero(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    for function in (chunked_cross_entropy, linear_cross_entropy):
        loss = function(hidden, weight, torch.full_like(targets, -100), z_weight=0.1)
        grads = torch.autograd.grad(loss, (hidden, weight))
        assert float(loss.detach()) == 0
        assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_ignored_row_with_infinite_logits_touches_nothing(
    smoothing: float, g: torch.Generator
) -> None:
    hidden, weight, targets = problem(g)
    targets[4] = -100
    kept = targets != -100
    expected = torch.autograd.grad(
        linear_cross_entropy(hidden[kept], weight, targets[kept], label_smoothing=smoothing),
        (hidden, weight),
    )
    with torch.no_grad():
        hidden[4] = 1e308  # finite, but its logits are infinite
    for function in (chunked_cross_entropy, linear_cross_entropy):
        loss = function(hidden, weight, targets, label_smoothing=smoothing)
        made = torch.autograd.grad(loss, (hidden, weight))
        for a, b in zip(made, expected, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_no_rows_at_all_is_zero(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    loss = chunked_cross_entropy(hidden[:0], weight, targets[:0])
    loss.backward()
    assert float(loss.detach()) == 0
    assert not weight.grad.any()


def test_batches_keep_their_shape(g: torch.Generator) -> None:
    hidden = torch.randn(2, 3, D, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(D, V, generator=g, dtype=torch.float64)
    targets = torch.randint(0, V, (2, 3), generator=g)
    loss = chunked_cross_entropy(hidden, weight, targets)
    expected = F.cross_entropy((hidden @ weight).reshape(-1, V), targets.reshape(-1))
    torch.testing.assert_close(loss, expected, **EXACT)
    loss.backward()
    assert hidden.grad.shape == hidden.shape


def test_only_the_wanted_gradients_are_computed(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    product = 2 * N * D * V

    def flops(h: Tensor, w: Tensor) -> int:
        def step() -> None:
            loss = chunked_cross_entropy(h, w, targets, chunk_size=4)
            if loss.requires_grad:
                loss.backward()

        return count_flops(step)

    assert flops(hidden, weight) == 3 * product
    assert flops(hidden.detach(), weight) == 2 * product
    assert flops(hidden, weight.detach()) == 2 * product
    assert flops(hidden.detach(), weight.detach()) == product
    with torch.no_grad():
        assert flops(hidden, weight) == product


def test_backward_twice_through_a_kept_graph_gives_the_same_gradient(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    loss = chunked_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(2 * loss, (hidden, weight))
    for a, b in zip(kept, second, strict=True):
        torch.testing.assert_close(2 * a, b, rtol=1e-15, atol=0)


def test_a_second_derivative_is_refused_not_silently_zero(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    loss = chunked_cross_entropy(hidden, weight, targets)
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated once: .* use linear_cross_entropy"):
        (grad**2).sum().backward()


def test_functional_grad_works(g: torch.Generator) -> None:
    hidden, weight, targets = (t.detach() for t in problem(g))
    made = torch.func.grad(chunked_cross_entropy)(hidden, weight, targets)
    expected = torch.func.grad(linear_cross_entropy)(hidden, weight, targets)
    torch.testing.assert_close(made, expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype, g: torch.Generator) -> None:
    n, d, v = 257, 17, 101
    hidden, weight, targets = problem(g, n=n, d=d, v=v, dtype=dtype)
    exact_inputs = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    exact = linear_cross_entropy(*exact_inputs, targets)
    loss = chunked_cross_entropy(hidden, weight, targets, chunk_size=16)
    assert loss.dtype == torch.float32
    # Logits of order sqrt(d), about 4, are rounded once to the input dtype.
    unit = torch.finfo(dtype).eps
    assert abs(float(loss.detach()) - float(exact.detach())) < 4 * unit
    made = torch.autograd.grad(loss, (hidden, weight))
    wanted = torch.autograd.grad(exact, exact_inputs)
    for a, b in zip(made, wanted, strict=True):
        assert a.dtype == dtype
        error = (a.double() - b).norm() / b.norm()
        # Rounded logits, rounded p - y, rounded result: a few units, not n of them.
        assert float(error) < 4 * unit


def test_small_gradients_survive_float16(g: torch.Generator) -> None:
    # (p - y) / N would be about 1e-4 / 4001, below the smallest float16, had it been divided early.
    n, v = 4001, 9973
    hidden = torch.ones(n, 2, dtype=torch.float16)
    weight = torch.zeros(2, v, dtype=torch.float16, requires_grad=True)
    targets = torch.randint(0, 7, (n,), generator=g)
    chunked_cross_entropy(hidden, weight, targets, chunk_size=500).backward()
    # A class that is never the target is pushed down by the mean of p = 1/v in each column of h.
    torch.testing.assert_close(
        weight.grad[:, 7:].float(), torch.full((2, v - 7), 1 / v), rtol=2e-3, atol=0
    )


def test_float32_gradients_agree_to_one_in_a_million_at_a_real_width(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g, n=509, d=576, v=2003, dtype=torch.float32)
    with torch.no_grad():
        weight.mul_(0.05)
    expected = torch.autograd.grad(F.cross_entropy(hidden @ weight, targets), (hidden, weight))
    made = torch.autograd.grad(chunked_cross_entropy(hidden, weight, targets), (hidden, weight))
    for a, b in zip(made, expected, strict=True):
        # Either one is 4e-7 away from float64: logits of order 1, rounded at 6e-8 after 576 terms.
        assert float((a - b).norm() / b.norm()) < 1e-6
        assert float((a - b).abs().max()) < 1e-6


@pytest.mark.parametrize("transposed", [False, True])
def test_peak_memory_is_chunks_and_gradients_not_logits(
    transposed: bool, g: torch.Generator
) -> None:
    # The shape of the real case, 8192 tokens by 49152 words by 576, with every size divided by 16.
    n, d, v = 512, 36, 3072
    hidden, weight, targets = problem(g, n=n, d=d, v=v, dtype=torch.float32)
    if transposed:
        weight = weight.detach().T.contiguous().T.requires_grad_()

    def plain() -> None:
        torch.autograd.grad(F.cross_entropy(hidden @ weight, targets), (hidden, weight))

    def chunked() -> None:
        torch.autograd.grad(
            chunked_cross_entropy(hidden, weight, targets, chunk_size=d // 2), (hidden, weight)
        )

    most = peak_bytes(chunked)
    gradients = 4 * (n * d + d * v)
    # Twice: as saved by the forward pass, and as scaled by the backward pass.
    assert 2 * gradients <= most < 2 * gradients + 4 * 16 * n
    assert most < 0.1 * peak_bytes(plain)


def test_without_gradients_only_one_chunk_is_held(g: torch.Generator) -> None:
    n, d, v, chunk = 512, 36, 3072, 64
    hidden, weight, targets = problem(g, n=n, d=d, v=v, dtype=torch.float32)
    with torch.no_grad():
        most = peak_bytes(chunked_cross_entropy, hidden, weight, targets, chunk_size=chunk)
    assert 4 * chunk * v <= most < 1.1 * 4 * chunk * v


def test_autocast_is_finite_and_returns_the_dtype_of_the_parameters(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g, dtype=torch.float32)
    exact = linear_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for function in (chunked_cross_entropy, linear_cross_entropy):
            loss = function(hidden, weight, targets)
            assert loss.dtype == torch.float32
            # Logits of order sqrt(D) in bfloat16, 8 bits.
            torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)
            grads = torch.autograd.grad(loss, (hidden, weight))
            assert all(grad.dtype == torch.float32 for grad in grads)
            assert all(bool(torch.isfinite(grad).all()) for grad in grads)


def test_autocast_does_not_hide_a_mixture_with_float64(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for function in (chunked_cross_entropy, linear_cross_entropy):
            assert function(hidden, weight, targets).dtype == torch.float64
            with pytest.raises(ValueError, match=r"hidden is torch.float64 but weight is"):
                function(hidden, weight.float(), targets)


def test_logits_beyond_float16_exponentials_stay_finite() -> None:
    hidden = torch.full((3, 1), 100.0, dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[100.0, -100.0, 0.0]], dtype=torch.float16, requires_grad=True)
    loss = chunked_cross_entropy(hidden, weight, torch.tensor([1, 0, 2]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((20000 + 0 + 10000) / 3)
    assert bool(torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all())


def test_inputs_are_not_written_into(g: torch.Generator) -> None:
    hidden, weight, targets = problem(g)
    targets[3] = -100
    copies = [t.detach().clone() for t in (hidden, weight, targets)]
    chunked_cross_entropy(hidden, weight, targets, chunk_size=3, label_smoothing=0.1).backward()
    assert all(
        torch.equal(a.detach(), b) for a, b in zip((hidden, weight, targets), copies, strict=True)
    )


def test_both_run_on_meta() -> None:
    for function in (chunked_cross_entropy, linear_cross_entropy):
        hidden = torch.empty(N, D, device="meta", requires_grad=True)
        weight = torch.empty(D, V, device="meta", requires_grad=True)
        targets = torch.empty(N, device="meta", dtype=torch.int64)
        loss = function(hidden, weight, targets)
        loss.backward()
        assert loss.is_meta
        assert hidden.grad.shape == (N, D)
        assert weight.grad.is_meta


def test_devices_agree(device: torch.device, g: torch.Generator) -> None:
    hidden, weight, targets = problem(g, dtype=torch.float32)
    moved = [t.detach().to(device).requires_grad_() for t in (hidden, weight)]
    loss = chunked_cross_entropy(*moved, targets.to(device), chunk_size=3)
    exact = F.cross_entropy(hidden @ weight, targets)
    torch.testing.assert_close(loss.cpu(), exact, rtol=1e-5, atol=0)
    expected = torch.autograd.grad(exact, (hidden, weight))
    for a, b in zip(torch.autograd.grad(loss, moved), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("own_checks")
def test_mistakes_are_named() -> None:
    hidden, weight = torch.zeros(N, D), torch.zeros(D, V)
    targets = torch.zeros(N, dtype=torch.int64)
    for function in (chunked_cross_entropy, linear_cross_entropy):
        with pytest.raises(ValueError, match=r"\(11, 5\) @ weight \(13, 5\).*: pass weight\.T"):
            function(hidden, weight.T, targets)
        with pytest.raises(ValueError, match=r"\(11, 5\) @ weight \(3, 13\) does not fit$"):
            function(hidden, torch.zeros(3, V), targets)
        with pytest.raises(ValueError, match=r"weight must have shape \(\*, \*\), got \(5,\)"):
            function(hidden, torch.zeros(D), targets)
        with pytest.raises(ValueError, match=r"targets must lie in \[0, 13\), got 13"):
            function(hidden, weight, targets + V)
        with pytest.raises(ValueError, match=r"shape \(11,\).*got \(7,\)"):
            function(hidden, weight, targets[:7])
        with pytest.raises(ValueError, match=r"targets must be ids, got torch.float32"):
            function(hidden, weight, torch.zeros(N, V))
        with pytest.raises(ValueError, match=r"targets must hold integers, got torch.bool"):
            function(hidden.to("meta"), weight.to("meta"), targets.bool().to("meta"))
        with pytest.raises(ValueError, match=r"one of mean, sum, got 'none'"):
            function(hidden, weight, targets, reduction="none")
        with pytest.raises(ValueError, match=r"hidden is torch.float32 but weight is torch.flo"):
            function(hidden, weight.double(), targets)
        with pytest.raises(ValueError, match="hidden must be floating"):
            function(hidden.long(), weight, targets)
        with pytest.raises(ValueError, match=r"label_smoothing must lie in"):
            function(hidden, weight, targets, label_smoothing=-0.1)
        with pytest.raises(ValueError, match=r"z_weight must lie in \[0\.0, inf\], got -1\.0"):
            function(hidden, weight, targets, z_weight=-1.0)
    with pytest.raises(ValueError, match="chunk_size must be 1 or more, got 0"):
        chunked_cross_entropy(hidden, weight, targets, chunk_size=0)


def test_uniform_logits_cost_log_v(g: torch.Generator) -> None:
    hidden, _, targets = problem(g)
    loss = chunked_cross_entropy(hidden, torch.zeros(D, V, dtype=torch.float64), targets)
    assert float(loss.detach()) == pytest.approx(math.log(V), abs=1e-14)


def test_logits_far_below_the_largest_weigh_nothing() -> None:
    # Their exponentials are below the smallest normal float32, where the CPU's exp is very slow.
    hidden = torch.tensor([[40.0, 0.0], [0.0, 30.0]], requires_grad=True)
    weight = torch.tensor([[3.0, 0.0, 0.7, 2.9], [0.0, 4.0, 3.9, -5.0]], requires_grad=True)
    targets = torch.tensor([2, 1])
    loss = chunked_cross_entropy(hidden, weight, targets, chunk_size=1)
    made = [loss, *torch.autograd.grad(loss, (hidden, weight))]
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    exact = F.cross_entropy(wide[0] @ wide[1], targets)
    for ours, its in zip(made, [exact, *torch.autograd.grad(exact, wide)], strict=True):
        torch.testing.assert_close(ours.double(), its, rtol=1e-5, atol=1e-6)
