"""cost and its counters: exact counts, and wrong formulas are caught."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from companion.verify import VerificationError, cost, count_flops, peak_bytes

SIZES = [{"n": 3, "d": 5, "m": 7}, {"n": 11, "d": 2, "m": 13}]


def multiply(n, d, m):
    return count_flops(torch.matmul, torch.ones(n, d), torch.ones(d, m))


FORGOTTEN = {"additions forgotten": lambda n, d, m: n * d * m}


def check(claim, sizes=SIZES, mutants=FORGOTTEN, measured=multiply):
    return cost("eq:flops", measured, claim, sizes, mutants=mutants, unit="FLOPs")


def test_the_right_formula_passes():
    record = check(lambda n, d, m: 2 * n * d * m)
    assert record.largest_error == 0
    assert record.mutants == ("doubled", "one more", "additions forgotten")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda n, d, m: n * d * m,
        lambda n, d, m: -2 * n * d * m,
        lambda n, d, m: 2 * n * d * d,
        lambda n, d, m: 2 * n * d * m + 1,
        lambda n, d, m: 2 * n * (d - 1) * m,
    ],
)
def test_wrong_formulas_are_caught(wrong):
    with pytest.raises(VerificationError, match="counted are"):
        check(wrong)


def test_a_single_or_square_setting_is_refused():
    with pytest.raises(VerificationError, match="two settings"):
        check(lambda n, d, m: 2 * n * d * m, sizes=SIZES[:1])
    with pytest.raises(VerificationError, match="differ pairwise"):
        check(lambda n, d, m: 2 * n * d * m, sizes=[{"n": 3, "d": 3, "m": 7}, SIZES[1]])


def test_a_constant_cost_is_no_evidence():
    with pytest.raises(VerificationError, match="same at every setting"):
        check(lambda n, d, m: 5, measured=lambda n, d, m: count_flops(torch.ones, 3) + 5)


def test_surviving_and_missing_mutants_are_caught():
    def right(n, d, m):
        return 2 * n * d * m

    with pytest.raises(VerificationError, match="'same' fits"):
        check(right, mutants={"same": lambda n, d, m: d * 2 * n * m})
    with pytest.raises(VerificationError, match="at least one mutant"):
        check(right, mutants={})


def test_a_size_that_never_varies_is_refused():
    fixed = [{"n": 3, "d": 5, "m": 7}, {"n": 3, "d": 2, "m": 13}]
    with pytest.raises(VerificationError, match="'n' is 3 in every setting"):
        check(lambda n, d, m: 6 * d * m, sizes=fixed)


def test_sizes_that_stay_proportional_are_refused():
    # Every model has d = h d_k, so 12 L d n D passed for 12 L h d_k n D.
    def scores(h, d_k, n, d):
        return count_flops(torch.matmul, torch.ones(h, n, d_k), torch.ones(h, d_k, n))

    models = [{"h": h, "d_k": k, "n": n, "d": h * k} for h, k, n in ((2, 3, 5), (7, 5, 11))]

    def wrong(h, d_k, n, d):
        return 2 * d * n * n

    arguments = {"mutants": {"no h": lambda h, d_k, n, d: 2 * d_k * n * n}, "unit": "FLOPs"}
    with pytest.raises(VerificationError, match=r"is the same in every setting"):
        cost("eq:scores", scores, wrong, models, **arguments)
    free = [{**models[0], "d": 13}, {**models[1], "d": 17}]
    with pytest.raises(VerificationError, match="counted are"):
        cost("eq:scores", scores, wrong, free, **arguments)
    cost("eq:scores", scores, lambda h, d_k, n, d: 2 * h * d_k * n * n, free, **arguments)


def test_a_constant_ratio_and_a_square_are_proportions_too():
    for sizes in (
        [{"n": 3, "d": 6, "m": 7}, {"n": 11, "d": 22, "m": 5}],  # d = 2 n
        [{"n": 3, "d": 9, "m": 7}, {"n": 11, "d": 121, "m": 5}],  # d = n^2
    ):
        with pytest.raises(VerificationError, match="is the same in every setting"):
            check(lambda n, d, m: 2 * n * d * m, sizes=sizes)


def test_sizes_are_named_alike_and_are_positive():
    with pytest.raises(VerificationError, match="the same sizes"):
        check(lambda n, d, m: 1, sizes=[{"n": 3, "d": 5, "m": 7}, {"n": 11, "d": 2}])
    with pytest.raises(VerificationError, match="positive whole"):
        check(lambda n, d, m: 1, sizes=[{"n": 3, "d": 5, "m": 7}, {"n": 11, "d": 2, "m": 0}])


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        (lambda n, d, m: None, "no number"),
        (lambda n, d, m: float("nan"), "NaN"),
        (lambda n, d, m: 1 / 0, "raised ZeroDivisionError"),
        (lambda n, d: n * d, "raised TypeError"),
        (lambda n, d, m: [n, d], "has shape"),
    ],
)
def test_a_mutant_must_be_a_wrong_number(mutant, message):
    with pytest.raises(VerificationError, match=f"'bad'.*{message}"):
        check(lambda n, d, m: 2 * n * d * m, mutants={"bad": mutant})


def test_a_formula_that_the_measurement_uses_itself_is_no_claim():
    def table(n, d, m):
        return 2 * n * d * m

    with pytest.raises(VerificationError, match=r"both go through .*table"):
        check(lambda n, d, m: table(n, d, m) * 1, measured=lambda n, d, m: table(n, d, m))


class TestCountFlops:
    def test_products_count_two_and_elementwise_work_none(self):
        x, W = torch.ones(3, 5), torch.ones(5, 7)
        assert count_flops(lambda: torch.relu(x @ W) + 1) == 2 * 3 * 5 * 7
        assert count_flops(lambda: x * 2) == 0

    def test_a_backward_pass_inside_the_call_counts(self):
        x = torch.ones(3, 5, requires_grad=True)
        W = torch.ones(5, 7, requires_grad=True)
        assert count_flops(lambda: (x @ W).sum().backward()) == 3 * 2 * 3 * 5 * 7

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize("causal", [False, True])
    def test_fused_attention_counts_as_two_products_of_matrices(self, device, causal):
        # PyTorch's own counter gives 0 for the fused kernel of the CPU.
        q = torch.ones(2, 3, 5, 7, device=device)
        k, v = torch.ones(2, 2, 3, 11, 7, device=device)
        counted = count_flops(scaled_dot_product_attention, q, k, v, is_causal=causal)
        assert counted == 2 * 3 * 4 * 5 * 11 * 7

    def test_the_backward_pass_of_fused_attention_counts_twice_the_forward_pass(self):
        q, k, v = (torch.ones(2, 3, 5, 7, requires_grad=True) for _ in range(3))
        counted = count_flops(lambda: scaled_dot_product_attention(q, k, v).sum().backward())
        assert counted == 3 * 2 * 3 * 4 * 5 * 5 * 7

    def test_grouped_heads_cost_what_all_heads_cost(self):
        q, k = torch.ones(1, 6, 5, 7), torch.ones(1, 2, 11, 7)
        counted = count_flops(scaled_dot_product_attention, q, k, k, enable_gqa=True)
        assert counted == 6 * 4 * 5 * 11 * 7

    def test_the_choice_of_kernels_is_as_before_afterwards(self):
        before = torch.backends.cuda.flash_sdp_enabled()
        with pytest.raises(RuntimeError):
            count_flops(torch.matmul, torch.ones(3, 5), torch.ones(3, 5))
        assert torch.backends.cuda.flash_sdp_enabled() == before


class TestPeakBytes:
    def test_it_counts_what_lives_at_one_time(self):
        x = torch.ones(1000)

        def three_in_turn(x):
            total = torch.zeros(())
            for _ in range(3):
                total = total + (x + 1).sum()
            return total

        one = peak_bytes(lambda x: (x + 1).sum(), x)
        assert one == 4004
        # The loop frees each copy before it makes the next one, so only scalars are added.
        assert one < peak_bytes(three_in_turn, x) <= one + 16

    def test_views_and_arguments_are_free(self):
        x = torch.ones(7, 11)
        assert peak_bytes(lambda: x.T[2:5].reshape(3, 7)[1]) == 0

    def test_tensors_kept_for_the_backward_pass_count(self):
        x = torch.ones(1000, requires_grad=True)

        def forward():
            return x.exp().exp().exp().sum()

        def forward_and_backward():
            torch.autograd.grad(forward(), x)

        # Three kept results, one more for the gradient while it flows back.
        assert peak_bytes(forward) == 3 * 4000 + 4
        assert peak_bytes(forward_and_backward) > 4 * 4000

    def test_memory_that_is_freed_is_not_counted_twice(self):
        def big_then_small():
            big = torch.ones(5000)
            del big
            return torch.ones(1000)

        assert peak_bytes(big_then_small) == 20_000
