"""Pictures as features, and modalities that meet: identities, counterexamples, missing ones."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from companion.knowledge.multimodal import (
    CrossModal,
    EfficientNetLite,
    LowRankFusion,
    PatchEmbedding,
    ResidualBlock,
    SingleStream,
    TensorFusion,
    efficientnet_lite0,
    late_fusion,
    mixed_attention,
    modality_mask,
    modality_share,
    patches,
)
from companion.transformer.block import TransformerConfig

CONFIG = TransformerConfig(vocab=11, dim=12, layers=2, heads=3, ff_dim=31, context=19, segments=2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


def test_patches_keep_channels_apart_on_a_picture_that_is_not_square() -> None:
    picture = torch.arange(8.0).view(1, 1, 2, 4)
    assert patches(picture, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    images = torch.randn(2, 3, 10, 15, dtype=torch.float64)
    unfolded = F.unfold(images, 5, stride=5).mT
    torch.testing.assert_close(patches(images, 5), unfolded, rtol=0, atol=0)
    embed = PatchEmbedding(3, 5, dim=7).double()
    want = unfolded @ embed.weight + embed.conv.bias
    torch.testing.assert_close(embed(images), want, rtol=1e-12, atol=1e-12)
    assert embed.positions(images) == 6


@pytest.mark.parametrize("height", [9, 16])
def test_patches_that_do_not_divide_are_refused(height: int) -> None:
    with pytest.raises(ValueError, match=f"do not divide pictures of {height} x 7"):
        patches(torch.zeros(1, 3, height, 7), 4)
    with pytest.raises(ValueError, match="do not divide"):
        PatchEmbedding(3, 4, dim=5)(torch.zeros(1, 3, height, 7))


def test_a_residual_block_whose_layer_is_zero_lets_its_input_through() -> None:
    block = ResidualBlock(5, 5).double().eval()
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, 5, 7, 11, dtype=torch.float64)
    torch.testing.assert_close(block(x), x.relu())
    assert ResidualBlock(3, 5, stride=2)(torch.ones(2, 3, 7, 11)).shape == (2, 5, 4, 6)


def test_efficientnet_knows_two_photographs() -> None:
    import sklearn.datasets

    from companion import data

    names = data.imagenet_names()
    net = efficientnet_lite0()
    images = []
    for photo in ("china.jpg", "flower.jpg"):
        pixels = torch.tensor(sklearn.datasets.load_sample_image(photo)[:, 106:533])
        square = pixels.permute(2, 0, 1)[None].float()
        images.append(F.interpolate(square, (224, 224), mode="bilinear", antialias=True))
    with torch.no_grad():
        best = net(torch.cat(images)).argmax(1).tolist()
    assert [names[k] for k in best] == ["palace", "daisy"]
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    assert (net.features(images[0]) >= 0).all()


def test_padding_is_that_of_tensorflow() -> None:
    # Even sizes with stride 2 and a kernel of 3: all of the padding stands on the right.
    stem = EfficientNetLite().stem[0]
    torch.nn.init.ones_(stem.weight)
    made = stem(torch.ones(1, 3, 4, 6))
    assert made.shape == (1, 32, 2, 3)
    assert made[0, 0].tolist() == [[27, 27, 18], [18, 18, 12]]


def test_late_fusion_divides_by_the_prior() -> None:
    each = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    for prior, value in ((0.5, 0.941176), (0.9, 0.64)):
        log_prior = torch.tensor([prior, 1 - prior], dtype=torch.float64).log()
        fused = late_fusion([each, each], log_prior).exp()
        assert float(fused[0]) == pytest.approx(value, abs=1e-6)
        torch.testing.assert_close(late_fusion([each], log_prior), each)


def test_late_fusion_says_nothing_about_an_exclusive_or() -> None:
    half = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    fused = late_fusion([half, half], half)  # of all four inputs
    torch.testing.assert_close(fused, half)
    g = torch.Generator().manual_seed(0)
    fuse = TensorFusion(1, 1, out=1, generator=g).double()
    fuse.weight.data = torch.tensor([[-1.0, 0.0], [0.0, 0.0]]).double()[:, :, None]
    a = torch.tensor([-1.0, -1.0, 1.0, 1.0]).double()[:, None]
    b = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()[:, None]
    assert (fuse(a, b)[:, 0] > 0).tolist() == [False, True, True, False]


def test_low_rank_is_tensor_fusion() -> None:
    g = torch.Generator().manual_seed(0)
    low = LowRankFusion([3, 4], rank=2, out=5, generator=g).double()
    full = TensorFusion(3, 4, out=5, generator=g).double()
    full.weight.data = low.tensor().detach()
    a, b = torch.randn(7, 3).double(), torch.randn(7, 4).double()
    torch.testing.assert_close(low([a, b]), full(a, b), rtol=1e-12, atol=1e-13)
    three = LowRankFusion([3, 4, 2], rank=2, out=5, generator=g)
    assert three([a.float(), b.float(), torch.ones(7, 2)]).shape == (7, 5)


def test_one_softmax_over_two_modalities_is_a_mixture_of_two() -> None:
    shapes = ((5, 7), (11, 7), (11, 3), (13, 7), (13, 3))
    q, k, v, r, w = (torch.randn(*s, dtype=torch.float64) for s in shapes)
    A = (q @ torch.cat([k, r]).T / math.sqrt(7)).softmax(-1)
    mixed, share = mixed_attention(q, (k, v), (r, w))
    torch.testing.assert_close(mixed, A @ torch.cat([v, w]), rtol=1e-12, atol=1e-13)
    other = torch.arange(24) >= 11
    torch.testing.assert_close(modality_share(A, other), share, rtol=1e-12, atol=0)
    # Scores far apart neither overflow nor become NaN.
    far = mixed_attention(1e4 * q, (k, v), (r, w))[1]
    assert torch.isfinite(far).all()


def reals(batch: int, n: int) -> Tensor:
    real = torch.ones(batch, n, dtype=torch.bool)
    real[1] = False
    return real


def test_a_missing_modality_gives_finite_numbers_and_no_gradient() -> None:
    layer = CrossModal(CONFIG).double()
    A = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    B = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    X, Y = layer(A, B, B_real=reals(2, 7))
    # What is not there is not read: another picture changes nothing.
    again, _ = layer(A, torch.cat([B[:1], 9 * B[1:]]), B_real=reals(2, 7))
    torch.testing.assert_close(again, X, rtol=0, atol=0)
    (X.square().sum() + Y.square().sum()).backward()
    for x in (A, B, *layer.parameters()):
        assert torch.isfinite(x.grad).all()  # type: ignore[union-attr]
    # The first example reads its picture: the control.
    assert not torch.equal(layer(A, 2 * B)[0][0], X[0])


def test_one_stream_reads_both_and_ignores_what_is_missing() -> None:
    model = SingleStream(CONFIG, features=5).double()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    pieces = torch.randn(2, 7, 5, dtype=torch.float64)
    whole = model(ids, pieces)
    assert whole.shape == (2, 10, 12)
    missing = model(ids, pieces, pieces_real=reals(2, 7))
    torch.testing.assert_close(missing[0], whole[0], rtol=1e-9, atol=1e-9)
    other = model(ids, 3 * pieces, pieces_real=reals(2, 7))
    torch.testing.assert_close(other[1, :3], missing[1, :3], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(whole[1, :3], missing[1, :3])
    with pytest.raises(ValueError, match="two modalities need segments=2"):
        SingleStream(
            TransformerConfig(vocab=2, dim=6, layers=1, heads=1, ff_dim=6, context=5), features=2
        )


def test_dropped_modalities_have_their_shares() -> None:
    g = torch.Generator().manual_seed(0)
    shown = modality_mask(20_000, 3, p=0.4, generator=g)
    assert shown.any(1).all()
    # Missing with probability p - p^K / K; the standard error is 0.0035.
    want = 0.4 - 0.4**3 / 3
    torch.testing.assert_close(
        1 - shown.double().mean(0), torch.full((3,), want, dtype=torch.float64), rtol=0, atol=0.015
    )
    assert modality_mask(7, 2, p=0.0, generator=g).all()


def test_errors_say_what_to_do() -> None:
    half = torch.tensor([0.5, 0.5]).log()
    with pytest.raises(ValueError, match="what one modality says"):
        late_fusion([], half)
    g = torch.Generator()
    with pytest.raises(ValueError, match="2 modalities are fused, got 1"):
        LowRankFusion([2, 3], rank=1, out=1, generator=g)([torch.ones(1, 2)])
    with pytest.raises(ValueError, match="two modalities make such a tensor"):
        LowRankFusion([2], rank=1, out=1, generator=g).tensor()
    with pytest.raises(ValueError, match="one modality at least"):
        LowRankFusion([], rank=1, out=1, generator=g)
    with pytest.raises(ValueError, match="p must lie in"):
        modality_mask(3, 2, p=1.5, generator=g)


def test_all_of_it_runs_where_there_are_no_numbers() -> None:
    from companion.knowledge import multimodal as mm

    with torch.device("meta"):
        U, s = torch.zeros(5, 3), torch.zeros(())
        log_p, lengths = torch.zeros(7, 2, 4), torch.ones(2, dtype=torch.long)
        images, ids = torch.zeros(2, 3, 8, 12), torch.zeros(2, 3, dtype=torch.long)
        layer = CrossModal(CONFIG)
        for made in (
            mm.clip_loss(U, U, s),
            mm.clip_loss(U, U, s, chunk_size=2),
            mm.siglip_loss(U, U, s, s),
            *mm.clip_gradient(U, U, s),
            mm.ctc_loss(log_p, lengths[:, None], 7 * lengths, lengths),
            mm.log_mel(torch.zeros(2, 4801)),
            mm.recall_at(U @ U.T, torch.arange(5), 2),
            mm.modality_gap(U, U),
            mm.ensemble(U),
            late_fusion([U, U], U[0]),
            patches(images, 4),
            ResidualBlock(3, 5)(images),
            EfficientNetLite().eval()(images),
            *layer(torch.zeros(2, 5, 12), torch.zeros(2, 7, 12)),
            SingleStream(CONFIG, features=5)(ids, torch.zeros(2, 7, 5)),
        ):
            assert made.device.type == "meta"


def test_a_class_without_prior_stays_without() -> None:
    log_p = torch.tensor([0.8, 0.2, 0.0], dtype=torch.float64).log()
    prior = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    fused = late_fusion([log_p, log_p], prior).exp()
    torch.testing.assert_close(fused, torch.tensor([16 / 17, 1 / 17, 0.0], dtype=torch.float64))
