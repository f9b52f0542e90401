"""LEACE against its theorem, against concept-erasure, and inside of models; INLP; probes."""

import numpy as np
import pytest
import torch
from concept_erasure import LeaceFitter, OracleFitter
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from companion.core import watch
from companion.transformer.block import Decoder, TransformerConfig
from companion.trust import debiasing as de


def numbers(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def data_with_concept(
    g: torch.Generator, n: int = 499, d: int = 11, k: int = 5
) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, k, (n,), generator=g)
    x = numbers(n, d, g=g) @ numbers(d, d, g=g) + 2 * numbers(k, d, g=g)[labels] + 3
    return x, labels


def theirs(x: Tensor, z: Tensor, **options: object) -> LeaceFitter:
    # Its defaults shrink the covariance, which is another eraser.
    made = {"shrinkage": False, "constrain_cov_trace": False, "svd_tol": 1e-9, **options}
    return LeaceFitter.fit(x, z, **made)


def left_over(x: Tensor, labels: Tensor, k: int) -> float:
    """The largest covariance with a class, over the deviation of the coordinate."""
    return float((de.cross_covariance(x, de.one_hot(labels, k)) / x.std(0)[:, None]).abs().max())


@pytest.mark.parametrize("k", [2, 3, 5])
def test_leace_is_that_of_concept_erasure(k: int, g: torch.Generator) -> None:
    x, labels = data_with_concept(g, k=k)
    z = de.one_hot(labels, k).double()
    fitter = de.ErasureFitter(11, k).update(x, labels)
    ours = fitter.eraser()
    other = theirs(x, z).eraser
    assert ours.right.shape == (11, k - 1)
    torch.testing.assert_close(ours.matrix, other.P.mT, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours(x), other(x), rtol=0, atol=1e-10)
    orthogonal = fitter.eraser("orthogonal")
    other = theirs(x, z, method="orth").eraser
    torch.testing.assert_close(orthogonal(x), other(x), rtol=0, atol=1e-10)
    told = OracleFitter.fit(x, z, svd_tol=1e-9).eraser
    torch.testing.assert_close(fitter.oracle()(x, labels), told(x, z), rtol=0, atol=1e-10)


def test_leace_is_the_formula_of_the_paper(g: torch.Generator) -> None:
    x, labels = data_with_concept(g)
    z = de.one_hot(labels, 5).double()
    xc, zc = x - x.mean(0), z - z.mean(0)
    values, vectors = torch.linalg.eigh(xc.mT @ xc / len(x))
    W = vectors @ (values.rsqrt()[:, None] * vectors.mT)
    A = W @ (xc.mT @ zc / len(x))
    P = A @ torch.linalg.pinv(A)
    want = x - xc @ W @ P @ torch.linalg.inv(W)
    torch.testing.assert_close(de.leace(x, labels)(x), want, rtol=0, atol=1e-11)


@settings(max_examples=25)
@given(st.integers(0, 2**20), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_nothing_linear_is_left_in_any_units(seed: int, of_x: float, of_z: float) -> None:
    g = torch.Generator().manual_seed(seed)
    x, labels = data_with_concept(g, n=97, d=7, k=3)
    x = x * of_x
    x[:, 0] *= 1e4  # one coordinate is far larger than the others
    made = de.leace(x, of_z * de.one_hot(labels, 3).double())
    # float64: a few hundred products of numbers of order one.
    assert left_over(made(x), labels, 3) < 1e-12
    torch.testing.assert_close(made.right.mT @ made.left, torch.eye(2).double(), atol=1e-8, rtol=0)
    again = de.leace(x, labels)
    torch.testing.assert_close(made.matrix, again.matrix, rtol=1e-7, atol=1e-7)


def test_a_concept_of_numbers_is_erased(g: torch.Generator) -> None:
    z = numbers(97, 2, g=g)
    x = numbers(97, 7, g=g) + z @ numbers(2, 7, g=g)
    for concept in (z, z[:, 0]):
        made = de.leace(x, concept)
        shown = concept if concept.ndim == 2 else concept[:, None]
        assert float(de.cross_covariance(made(x), shown).abs().max()) < 1e-13
    # With a class as one number, what is not linear in it stays.
    y, labels = data_with_concept(g, k=3)
    made = de.leace(y, labels.double())
    assert left_over(made(y), labels, 3) > 0.05


def test_coordinates_may_depend_on_each_other(g: torch.Generator) -> None:
    x, labels = data_with_concept(g)
    wide = torch.cat([x, 2 * x[:, :3] - x[:, 3:6], torch.full((len(x), 1), 3.0).double()], 1)
    made = de.leace(wide, labels)
    assert left_over(made(wide)[:, :-1], labels, 5) < 1e-12
    assert torch.equal(made(wide)[:, -1], wide[:, -1])
    torch.testing.assert_close(
        made(wide), theirs(wide, de.one_hot(labels, 5).double()).eraser(wide), rtol=0, atol=1e-9
    )
    few = x[:7]  # fewer rows than coordinates
    assert left_over(de.leace(few, labels[:7] % 2)(few), labels[:7] % 2, 2) < 1e-10


def test_single_precision_erases_to_single_precision(g: torch.Generator) -> None:
    x, labels = data_with_concept(g, n=5003)
    made = de.leace(x.float(), labels)
    assert made(x.float()).dtype == torch.float32
    # Means of 5,003 rounded numbers: some eps.
    assert left_over(made(x.float()).double(), labels, 5) < 30 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(made(x), de.leace(x, labels)(x), rtol=0, atol=1e-3)
    half = de.leace(x.half(), labels)
    assert half(x.half()).dtype == torch.float16
    assert left_over(half(x.half()).double(), labels, 5) < 2e-3
    bf16 = x.bfloat16()
    assert left_over(de.leace(bf16, labels)(bf16).double(), labels, 5) < 2e-2


def test_no_map_that_erases_changes_less(g: torch.Generator) -> None:
    # The program min tr((A-I)' S (A-I) M) with A' C = 0, solved as linear equations, for several M.
    x, labels = data_with_concept(g, n=83, d=5, k=3)
    fitter = de.ErasureFitter(5, 3).update(x, labels)
    S, C = fitter.covariance, fitter.cross_covariance[:, :2]
    made = fitter.eraser()
    for _ in range(3):
        root = numbers(5, 5, g=g)
        M = root @ root.mT
        # Stationarity: 2 S (A - I) M = C L for multipliers L; feasibility: C' A = 0.
        eye = torch.eye(5).double()
        top = torch.cat([torch.kron(2 * S, M), -torch.kron(C.contiguous(), eye)], 1)
        low = torch.cat([torch.kron(C.mT.contiguous(), eye), torch.zeros(10, 10).double()], 1)
        right = torch.cat([(2 * S @ M).flatten(), torch.zeros(10).double()])
        solved = torch.linalg.solve(torch.cat([top, low]), right)
        A = solved[:25].view(5, 5)
        torch.testing.assert_close(made.matrix, A, rtol=0, atol=1e-10)


@settings(max_examples=20)
@given(st.integers(0, 2**20))
def test_costs_are_ordered(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, labels = data_with_concept(g, n=61, d=5, k=3)
    fitter = de.ErasureFitter(5, 3).update(x, labels)

    def moved(after: Tensor) -> float:
        return float((after - x).square().sum(1).mean())

    best, orthogonal = fitter.eraser(), fitter.eraser("orthogonal")
    oracle = fitter.oracle()(x, labels)
    assert moved(oracle) <= moved(best(x)) + 1e-12
    assert moved(best(x)) <= moved(orthogonal(x)) + 1e-12
    for shrinkage in (0.01, 0.3, 1.0):
        other = fitter.eraser(shrinkage=shrinkage)
        assert left_over(other(x), labels, 3) < 1e-12
        assert moved(best(x)) <= moved(other(x)) + 1e-12
    # What is taken away has no covariance with what stays, so variances add.
    spread = (x - x.mean(0)).square().sum(1).mean()
    left = best(x)
    assert float(spread) == pytest.approx(
        float((left - left.mean(0)).square().sum(1).mean()) + moved(left), rel=1e-10
    )
    torch.testing.assert_close(left.mean(0), x.mean(0), rtol=0, atol=1e-12)


def test_batches_and_parts_give_what_all_rows_give(g: torch.Generator) -> None:
    x, labels = data_with_concept(g)
    x = x + torch.linspace(0, 50, len(x))[:, None]  # the mean wanders
    whole = de.ErasureFitter(11, 5).update(x, labels)
    stream = de.ErasureFitter(11, 5)
    for rows in torch.arange(len(x)).split(37):
        stream = stream.update(x[rows], labels[rows])
    parts = de.ErasureFitter(11, 5).update(x[:101], labels[:101])
    rest = de.ErasureFitter(11, 5).update(x[101:], labels[101:])
    n, mean = parts.n, parts.mean_x.clone()
    for other in (stream, parts.merge(rest), de.ErasureFitter(11, 5).merge(whole)):
        assert other.n == len(x)
        torch.testing.assert_close(other.covariance, whole.covariance, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(other.eraser()(x), whole.eraser()(x), rtol=0, atol=1e-9)
    assert parts.n == n
    assert torch.equal(parts.mean_x, mean)
    want = torch.from_numpy(np.cov(x.numpy().T, bias=True))
    torch.testing.assert_close(whole.covariance, want, rtol=1e-11, atol=1e-11)
    tokens = de.ErasureFitter(11, 5).update(x[:498].view(3, 166, 11), labels[:498].view(3, 166))
    assert tokens.n == 498


def test_half_of_a_product_is_the_product(g: torch.Generator) -> None:
    from companion.trust.debiasing._leace import _gram

    for dim in (7, 257, 331):
        x = numbers(13, dim, g=g)
        torch.testing.assert_close(_gram(x), x.mT @ x, rtol=1e-12, atol=1e-12)


def test_a_concept_that_does_not_vary_erases_nothing(g: torch.Generator) -> None:
    x = numbers(13, 3, g=g)
    same = torch.zeros(13, dtype=torch.long)
    for made in (
        de.leace(x, same, classes=2),
        de.leace(x, same, classes=2, method="orthogonal"),
    ):
        assert made.right.shape == (3, 0)
        assert torch.equal(made(x), x)
        torch.testing.assert_close(made.matrix, torch.eye(3).double())
    told = de.ErasureFitter(3, 2).update(x, same).oracle()
    assert torch.equal(told(x, same), x)


def test_no_linear_probe_beats_a_constant_and_a_nonlinear_one_may(g: torch.Generator) -> None:
    angle = 6.283 * torch.rand(997, generator=g, dtype=torch.float64)
    labels = (torch.rand(997, generator=g) < 0.5).long()
    circle = torch.stack([angle.cos(), angle.sin()], 1) * (1 + labels[:, None])
    x = circle + 3 * labels[:, None]
    erased = de.leace(x, labels)(x)
    probe = LogisticRegression(C=1e4).fit(erased.numpy(), labels.numpy())
    majority = float(torch.bincount(labels).amax()) / 997
    assert probe.score(erased.numpy(), labels.numpy()) <= majority + 1e-9
    ours = de.logistic_probe(erased, labels, penalty=1e-9)
    assert ours.weight.abs().max() < 1e-6
    radius = (erased - erased.mean(0)).norm(dim=1, keepdim=True)
    round_ = de.logistic_probe(radius, labels, penalty=1e-6)
    assert float(de.balanced_accuracy(round_.predict(radius), labels)) > 0.65


def test_held_out_leakage_falls_with_the_root_of_the_rows(g: torch.Generator) -> None:
    d, leaks = 13, []
    for n in (400, 6400):
        found = []
        for _ in range(20):
            labels = torch.randint(0, 2, (n + 20_000,), generator=g)
            x = numbers(n + 20_000, d, g=g) + labels[:, None]
            made = de.leace(x[:n], labels[:n])(x[n:])
            found.append(de.cross_covariance(made, labels[n:, None].double()).norm())
        leaks.append(float(torch.stack(found).mean()))
    assert 3 < leaks[0] / leaks[1] < 5  # sixteen times the rows, a quarter of the leak


def test_probes_are_those_of_scikit_learn(g: torch.Generator) -> None:
    x, labels = data_with_concept(g, k=2)
    ours = de.logistic_probe(x, labels, penalty=0.01, balanced=False)
    other = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-10, max_iter=10_000)
    other.fit(x.numpy(), labels.numpy())
    torch.testing.assert_close(
        ours.weight[:, 0], torch.from_numpy(other.coef_[0]), rtol=1e-4, atol=1e-5
    )
    weighted = de.logistic_probe(x, labels, penalty=0.01)
    other.set_params(class_weight="balanced").fit(x.numpy(), labels.numpy())
    torch.testing.assert_close(
        weighted.weight[:, 0], torch.from_numpy(other.coef_[0]), rtol=1e-4, atol=1e-5
    )
    many, five = data_with_concept(g, k=5)
    probe = de.logistic_probe(many, five)
    assert probe.weight.shape == (11, 5)
    assert float(de.balanced_accuracy(probe.predict(many), five)) > 0.6
    absent = de.logistic_probe(many, five % 2 * 2, classes=4)  # classes 1 and 3 never occur
    assert set(absent.predict(many).tolist()) <= {0, 2}


def test_inlp_projects_onto_the_joint_null_space(g: torch.Generator) -> None:
    # faults: the product of the projections along (1, 0) and (1, 1)/sqrt 2 is neither symmetric
    # nor idempotent, and the projection onto what both leave is 0.
    w = torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]]).double()
    P = [torch.eye(2).double() - torch.outer(v, v) for v in w]
    product = P[0] @ P[1]
    assert (product - product.mT).abs().max() > 0.4
    assert (product @ product - product).abs().max() > 0.2
    x, labels = data_with_concept(g, k=3)
    made = de.inlp(x, labels, rounds=2, tolerance=0.0)
    assert made.directions.shape == (6, 11)
    torch.testing.assert_close(made.matrix, made.matrix.mT)
    torch.testing.assert_close(made.matrix @ made.matrix, made.matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(made(x), x @ made.matrix, rtol=0, atol=1e-12)
    assert (made(x) @ made.directions.mT).abs().max() < 1e-12
    first = de.logistic_probe(x, labels).weight
    first = first / first.norm(dim=0)
    assert (made(torch.eye(11).double()) @ first).abs().max() < 1e-12  # not what the first saw


def test_inlp_stops_by_balanced_accuracy(g: torch.Generator) -> None:
    labels = (torch.rand(997, generator=g) < 0.05).long()
    x = numbers(997, 7, g=g)
    x[:, 0] += 4 * labels
    made = de.inlp(x, labels, rounds=7, tolerance=0.05)
    assert made.accuracy[0] > 0.9
    # A constant has an accuracy of 0.95 here, and would have stopped nothing or everything.
    assert len(made.directions) < 7
    assert made.accuracy[-1] <= 0.55
    assert de.inlp(x, labels, rounds=99, tolerance=0.0).directions.shape[0] <= 7


def model() -> tuple[Decoder, list[de.TextBatch]]:
    g = torch.Generator().manual_seed(1)
    config = TransformerConfig(vocab=23, dim=12, layers=3, heads=3, ff_dim=13, context=17)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = Decoder(config).double().eval()
    batches = []
    for rows in (11, 13):
        ids = torch.randint(0, 23, (rows, 7), generator=g)
        side = torch.randint(0, 2, (rows,), generator=g)
        ids[:, 0] = side  # the concept is in the text
        real = torch.ones_like(ids, dtype=torch.bool)
        real[::3, 5:] = False
        batches.append(de.TextBatch(ids=ids, real=real, concept=side))
    return decoder, batches


def rows_of(decoder: Decoder, batches: list[de.TextBatch], name: str) -> tuple[Tensor, Tensor]:
    seen_rows, sides = [], []
    for batch in batches:
        with torch.no_grad(), watch(decoder, read=[name]) as seen:
            decoder(batch.ids, real=batch.real)
        seen_rows.append(seen[name][batch.real])
        sides.append(batch.concept[:, None].expand_as(batch.ids)[batch.real])
    return torch.cat(seen_rows), torch.cat(sides)


def test_a_scrubbed_model_has_no_concept_at_its_sites() -> None:
    decoder, batches = model()
    before = [p.clone() for p in decoder.parameters()]
    scrubber = de.scrub(decoder, batches, sites=["blocks.*.stream"], classes=2)
    assert list(scrubber.erasers) == [f"blocks.{i}.stream" for i in range(3)]
    plain = decoder(batches[0].ids, real=batches[0].real)
    for name in scrubber.erasers:
        x, sides = rows_of(decoder, batches, name)
        assert left_over(x, sides, 2) > 0.01
    with scrubber.applied(decoder):
        for name in scrubber.erasers:
            x, sides = rows_of(decoder, batches, name)
            assert left_over(x, sides, 2) < 1e-11
        assert not torch.equal(decoder(batches[0].ids, real=batches[0].real), plain)
    assert torch.equal(decoder(batches[0].ids, real=batches[0].real), plain)
    for one, other in zip(decoder.parameters(), before, strict=True):
        assert torch.equal(one, other)


def test_fitting_all_sites_at_once_does_not_do_for_later_ones() -> None:
    decoder, batches = model()
    together = de.scrub(decoder, batches, sites=["blocks.*.stream"], classes=2, sequential=False)
    with together.applied(decoder):
        first = rows_of(decoder, batches, "blocks.0.stream")
        last = rows_of(decoder, batches, "blocks.2.stream")
    assert left_over(*first, 2) < 1e-11
    assert left_over(*last, 2) > 1e-6
    one = de.scrub(decoder, batches, sites=["blocks.1.stream"], classes=2, shrinkage=0.2)
    with one.applied(decoder):
        assert left_over(*rows_of(decoder, batches, "blocks.1.stream"), 2) < 1e-11
    chosen = []
    for batch in batches:
        rows = torch.zeros_like(batch.real)
        rows[:, :2] = True
        chosen.append(
            de.TextBatch(ids=batch.ids, real=batch.real, concept=batch.concept, rows=rows)
        )
    some = de.scrub(decoder, chosen, sites=["blocks.1.stream"], classes=2)
    assert not torch.equal(
        some.erasers["blocks.1.stream"].mean, one.erasers["blocks.1.stream"].mean
    )


def test_dropout_does_not_blur_the_fit_and_the_mode_stays() -> None:
    config = TransformerConfig(
        vocab=23, dim=12, layers=1, heads=3, ff_dim=13, context=17, dropout=0.5
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = Decoder(config).double().train()
        _, batches = model()
        fits = [
            de.scrub(decoder, batches, sites=["blocks.0.stream"], classes=2).erasers
            for _ in range(2)
        ]
    assert decoder.training
    assert decoder.blocks[0].training
    one, other = (fit["blocks.0.stream"].matrix for fit in fits)
    assert torch.equal(one, other)


@pytest.mark.usefixtures("own_checks")
def test_masks_of_numbers_pick_no_rows() -> None:
    decoder, (batch, _) = model()
    for real, rows in ((batch.real.long(), None), (batch.real, batch.real.long())):
        numbered = de.TextBatch(ids=batch.ids, real=real, concept=batch.concept, rows=rows)
        with pytest.raises(ValueError, match=r"(real|rows) must be Boolean, got torch\.int64"):
            de.scrub(decoder, [numbered], sites=["blocks.0.stream"], classes=2)


def test_what_is_refused(g: torch.Generator, own_checks: None) -> None:
    x, labels = data_with_concept(g, n=13, d=3, k=2)
    with pytest.raises(ValueError, match="need two rows or more, and have seen 0"):
        de.ErasureFitter(3, 2).eraser()
    with pytest.raises(ValueError, match="method must be 'leace' or 'orthogonal', got 'pca'"):
        de.leace(x, labels, method="pca")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shrinkage must lie in"):
        de.leace(x, labels, shrinkage=1.5)
    with pytest.raises(ValueError, match=r"classes z must have shape \(13,\)"):
        de.leace(x, labels[:5])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 2"):
        de.ErasureFitter(3, 2).update(x, labels + 1)
    with pytest.raises(ValueError, match="x must be finite"):
        de.leace(x * float("inf"), labels)
    with pytest.raises(ValueError, match=r"sizes \(3, 2\) and \(4, 2\)"):
        de.ErasureFitter(3, 2).merge(de.ErasureFitter(4, 2))
    with pytest.raises(ValueError, match="the last axis of x"):
        de.leace(x, labels)(x[:, :2])
    with pytest.raises(ValueError, match="rows of two classes"):
        de.logistic_probe(x, torch.zeros(13).long())
    with pytest.raises(ValueError, match="vectors of 3 numbers, got 2"):
        de.logistic_probe(x, labels).predict(x[:, :2])
    with pytest.raises(ValueError, match="vectors must have 3 numbers, got 2"):
        de.inlp(x, labels, rounds=1)(x[:, :2])
    decoder, batches = model()
    with pytest.raises(ValueError, match="there is no site 'stream'"):
        de.scrub(decoder, batches, sites=["stream"], classes=2)
    with pytest.raises(ValueError, match="batches must be 1 or more"):
        de.scrub(decoder, [], sites=["blocks.*.stream"], classes=2)


def test_shapes_without_values() -> None:
    empty = torch.ones(5, 7, device="meta")
    eraser = de.Eraser(
        right=empty[:, :2], left=empty[:, :2], mean=empty[:, 0],
        correlations=empty[0, :2],
    )  # fmt: skip
    assert eraser(torch.ones(3, 2, 5, device="meta")).shape == (3, 2, 5)
    told = de.OracleEraser(coefficients=empty, mean=empty[:, 0])
    assert told(torch.ones(3, 7, device="meta"), torch.ones(3, 5, device="meta")).shape == (3, 7)
    assert de.cross_covariance(empty, empty[:, :3]).shape == (7, 3)
