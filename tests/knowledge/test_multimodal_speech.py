"""Sound: spectrograms, CTC, and Whisper, each against an independent implementation."""

import itertools
import math
import os
import wave
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from companion import data
from companion.core import watch
from companion.data.speech import read_ctranslate2, read_wave
from companion.knowledge.multimodal import (
    SignalToText,
    Whisper,
    collapse,
    ctc_greedy,
    ctc_loss,
    log_mel,
    mel_filters,
    suppress,
    transcribe,
    whisper,
    word_errors,
)
from companion.models import History, generate, greedy
from companion.transformer.block import Learned, TransformerConfig

SMALL = TransformerConfig(
    vocab=23, dim=12, layers=2, heads=3, ff_dim=31, context=9, positions=Learned()
)


@pytest.fixture(scope="module")
def model() -> Whisper:
    return whisper()


def stored_clip() -> tuple[Tensor, str]:
    import base64

    kept = data.stored_run("multimodal").results["speech"]["clip"]
    codes = np.frombuffer(base64.b64decode(kept["mu_law"]), dtype=np.uint8)
    y = torch.from_numpy(codes / 127.5 - 1).float()
    return y.sign() * torch.expm1(y.abs() * math.log(256)) / 255, str(kept["text"])


# Spectrograms


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("unit_area", [True, False])
def test_filters_equal_those_of_transformers(scale: str, unit_area: bool) -> None:
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(
        201, 80, 0.0, 8000.0, 16000, norm="slaney" if unit_area else None, mel_scale=scale
    )
    ours = mel_filters(
        rate_hz=16000,
        fft=400,
        mels=80,
        scale=scale,
        unit_area=unit_area,
        dtype=torch.float64,  # type: ignore[arg-type]
    )
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_the_spectrogram_is_that_of_transformers() -> None:
    from transformers import WhisperFeatureExtractor

    g = torch.Generator().manual_seed(0)
    clips = [0.1 * torch.randn(n, generator=g) for n in (16_001, 70_003)]
    theirs = WhisperFeatureExtractor()(
        [c.numpy() for c in clips], sampling_rate=16000, return_tensors="pt"
    ).input_features
    padded = torch.stack([F.pad(c, (0, 480_000 - len(c))) for c in clips])
    torch.testing.assert_close(log_mel(padded), theirs, rtol=0, atol=1e-5)


def test_a_quiet_clip_does_not_hear_its_neighbor() -> None:
    g = torch.Generator().manual_seed(0)
    loud = torch.randn(4801, generator=g, dtype=torch.float64)
    quiet = 1e-5 * torch.randn(4801, generator=g, dtype=torch.float64)
    both = log_mel(torch.stack([loud, quiet]))
    torch.testing.assert_close(both[1], log_mel(quiet), rtol=0, atol=1e-12)
    # A peak of the batch would have raised all of it to one value.
    assert float(both[1].std()) > 0.01
    assert float(log_mel(torch.zeros(4801)).unique()) == pytest.approx(-1.5)


# CTC


def by_enumeration(p: Tensor, labels: list[int]) -> float:
    paths = itertools.product(range(p.shape[1]), repeat=len(p))
    return sum(
        math.prod(float(p[t, k]) for t, k in enumerate(path))
        for path in paths
        if collapse(path) == labels
    )


def one_loss(p: Tensor, labels: list[int]) -> Tensor:
    return ctc_loss(
        p.log()[:, None],
        torch.tensor([labels or [1]]),
        torch.tensor([len(p)]),
        torch.tensor([len(labels)]),
        reduction="sum",
    )


@given(st.lists(st.integers(1, 2), max_size=3), st.integers(1, 5), st.integers(0, 99))
def test_ctc_sums_all_paths(labels: list[int], frames: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(frames, 3, generator=g, dtype=torch.float64).softmax(1)
    total = by_enumeration(p, labels)
    loss = float(one_loss(p, labels))
    assert loss == pytest.approx(-math.log(total) if total else math.inf, rel=1e-9)


def test_small_cases_by_hand() -> None:
    even = torch.full((3, 2), 0.5, dtype=torch.float64)
    assert float(one_loss(even, [1, 1])) == pytest.approx(2.0794, abs=1e-4)  # ln 8
    assert float(one_loss(even, [1])) == pytest.approx(0.28768, abs=1e-5)  # ln(8/6)
    assert float(one_loss(even, [])) == pytest.approx(2.0794, abs=1e-4)
    assert float(one_loss(even[:2], [1, 1])) == math.inf
    mean = ctc_loss(
        even.log()[:, None], torch.tensor([[1, 1]]), torch.tensor([3]), torch.tensor([2])
    )
    assert float(mean) == pytest.approx(1.0397, abs=1e-4)


def batch_of_three() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(11, 3, 5, generator=g, dtype=torch.float64)
    targets = torch.tensor([[1, 1, 2], [3, 4, 0], [0, 0, 0]])
    return logits, targets, torch.tensor([11, 7, 5]), torch.tensor([3, 2, 0])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_ctc_equals_that_of_pytorch_behind_a_softmax(reduction: str) -> None:
    logits, *rest = batch_of_three()
    logits.requires_grad_()
    ours = ctc_loss(logits.log_softmax(-1), *rest, reduction=reduction)  # type: ignore[arg-type]
    theirs = F.ctc_loss(logits.log_softmax(-1), *rest, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    (have,) = torch.autograd.grad(ours.sum(), logits)
    (want,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_given_log_probabilities() -> None:
    logits, *rest = batch_of_three()
    log_p = logits.log_softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ctc_loss(x, *rest, reduction="sum"), log_p)
    # A frame shows one label, so each row of the gradient sums to -1; PyTorch's sums to 0.
    (ours,) = torch.autograd.grad(ctc_loss(log_p, *rest, reduction="sum"), log_p)
    (theirs,) = torch.autograd.grad(F.ctc_loss(log_p, *rest, reduction="sum"), log_p)
    torch.testing.assert_close(ours[:5].sum(-1), torch.full((5, 3), -1.0, dtype=torch.float64))
    assert float(theirs[:5].sum(-1).abs().max()) < 1e-9


def test_one_that_cannot_be_said_harms_no_other() -> None:
    logits, targets, frames, lengths = batch_of_three()
    frames = torch.tensor([3, 7, 5])  # "1 1 2" needs four
    log_p = logits.log_softmax(-1).requires_grad_()
    losses = ctc_loss(log_p, targets, frames, lengths, reduction="none")
    assert losses[0] == math.inf
    assert torch.isfinite(losses[1:]).all()
    (grad,) = torch.autograd.grad(losses[1:].sum(), log_p, retain_graph=True)
    assert torch.isfinite(grad).all()
    (whole,) = torch.autograd.grad(losses.sum(), log_p)
    torch.testing.assert_close(whole, grad)


def test_repeats_are_merged_before_blanks_go() -> None:
    assert collapse([1, 1, 0, 1]) == [1, 1]
    assert collapse([2, 0, 0, 2, 2, 1], blank=1) == [2, 0, 2]
    scores = F.one_hot(torch.tensor([0, 2, 2, 0, 2, 1]), 3).float()
    assert ctc_greedy(scores) == [2, 2, 1]
    # A blank that is no label would leave every blank in; a NaN would say nothing.
    for blank in (-1, 3):
        with pytest.raises(ValueError, match="blank must"):
            ctc_greedy(scores, blank=blank)
    with pytest.raises(ValueError, match="log_p must be numbers"):
        ctc_greedy(scores / 0.0 * 0.0)


def test_ctc_refuses_what_cannot_be_meant() -> None:
    logits, targets, frames, lengths = batch_of_three()
    with pytest.raises(ValueError, match="the blank 0 stands in the targets"):
        ctc_loss(logits, targets, frames, torch.tensor([3, 3, 0]))
    with pytest.raises(ValueError, match="lengths"):
        ctc_loss(logits, targets, frames, torch.tensor([4, 2, 0]))
    with pytest.raises(ValueError, match="frames"):
        ctc_loss(logits, targets, torch.tensor([12, 7, 5]), lengths)
    with pytest.raises(ValueError, match="targets"):
        ctc_loss(logits, targets + 3, frames, lengths)


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=7),
    st.lists(st.sampled_from("abc"), max_size=7),
)
def test_word_errors_are_as_many_as_jiwer_counts(first: list[str], second: list[str]) -> None:
    ours = word_errors(first, second)
    theirs = jiwer.process_words(" ".join(first), " ".join(second))
    assert sum(ours) == theirs.substitutions + theirs.deletions + theirs.insertions
    assert ours[1] - ours[2] == len(first) - len(second)


# Whisper


def test_whisper_equals_that_of_transformers(model: Whisper) -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    held = data.whisper()
    z = held.config
    theirs = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=z.vocab,
            num_mel_bins=z.mels,
            encoder_layers=z.layers,
            decoder_layers=z.layers,
            encoder_attention_heads=z.heads,
            decoder_attention_heads=z.heads,
            encoder_ffn_dim=z.ff_dim,
            decoder_ffn_dim=z.ff_dim,
            d_model=z.dim,
            max_source_positions=z.frames,
            max_target_positions=z.context,
            pad_token_id=held.stop,
            bos_token_id=held.stop,
            eos_token_id=held.stop,
            decoder_start_token_id=held.start[0],
        )
    ).eval()
    kept = theirs.load_state_dict(dict(held.weights), strict=False)
    assert kept.missing_keys == ["proj_out.weight"]  # tied
    assert not kept.unexpected_keys
    waveform, _ = stored_clip()
    source = log_mel(F.pad(waveform, (0, 480_000 - len(waveform))))[None]
    ids = torch.tensor([[*held.start, 679, 1244]])
    with torch.no_grad():
        want = theirs(input_features=source, decoder_input_ids=ids)
        memory = model.encode(source)
        torch.testing.assert_close(memory, want.encoder_last_hidden_state, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(source, ids), want.logits, rtol=1e-4, atol=1e-4)
    assert (
        sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in theirs.parameters())
        == 4 * 3 * z.dim
    )  # the biases of keys, which are zero here and absent there


def test_a_real_sentence_is_written_down(model: Whisper) -> None:
    waveform, text = stored_clip()
    heard = transcribe(model, waveform)
    assert heard.lower().rstrip(".").split() == text.split()
    assert not waveform.requires_grad


def test_all_clips_where_they_are_installed(model: Whisper) -> None:
    """The package is optional for a reader; CI installs it and says so."""
    if os.environ.get("COMPANION_SPEECH") == "required":
        assert data.is_present("speech")
    rows = data.stored_run("multimodal").results["speech"]["clips"]
    clips = data.speech() if data.is_present("speech") else []
    for clip, row in zip(clips, rows, strict=False):
        assert (clip.name, clip.text) == (row[0], row[2])
        assert transcribe(model, clip.waveform) == row[3]


def test_the_bias_of_the_keys_has_no_gradient(model: Whisper) -> None:
    small = Whisper(SMALL, frames=17, mels=5).double()
    source = torch.randn(2, 5, 34, dtype=torch.float64)
    loss = small(source, torch.tensor([[1, 2, 3], [4, 5, 6]])).square().sum()
    loss.backward()
    for part in (small.encoder.blocks[0].attention, small.decoder.blocks[1].cross):
        grad = part.qkv.bias.grad.view(3, -1)
        assert float(grad[1].abs().max()) < 1e-10 * float(grad[0].abs().max() + grad[2].abs().max())


def test_the_sines_are_those_of_the_file(model: Whisper) -> None:
    fresh = Whisper(SMALL, frames=1500).encoder.positions.weight
    assert not fresh.requires_grad
    made = Whisper(
        TransformerConfig(
            vocab=2, dim=384, layers=1, heads=6, ff_dim=8, context=4, positions=Learned()
        )
    )
    # The file holds float16: half a unit in the last place of 1 is 2.4e-4.
    torch.testing.assert_close(
        made.encoder.positions.weight, model.encoder.positions.weight, rtol=0, atol=5e-4
    )


def test_writing_with_a_cache_reads_the_same() -> None:
    torch.manual_seed(0)
    small = Whisper(SMALL, frames=17, mels=5).double().eval()
    for parameter in small.decoder.parameters():
        nn.init.normal_(parameter, std=0.7)
    source = torch.randn(3, 5, 34, dtype=torch.float64)
    ids = torch.tensor([[1], [2], [3]])
    written = generate(small, ids, tokens=6, source=source)
    text = ids
    for _ in range(6):
        text = torch.cat([text, small(source, text)[:, -1].argmax(-1, keepdim=True)], 1)
    assert written.tolist() == text[:, 1:].tolist()
    with watch(small, read=["decoder.blocks.0.cross.weights"]) as seen:
        small(source, ids)
    assert seen["decoder.blocks.0.cross.weights"].shape == (3, 3, 1, 17)
    with pytest.raises(ValueError, match="source must have shape"):
        generate(small, ids, tokens=2, source=source[:, :3])


class Rows(nn.Module):
    """A front end that is a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 12)

    def positions(self, source: Tensor) -> int:
        return source.shape[1]

    def forward(self, source: Tensor) -> Tensor:
        mapped: Tensor = self.map(source)
        return mapped


def test_a_caption_depends_on_its_picture_alone() -> None:
    torch.manual_seed(0)
    model = SignalToText(SMALL, front=Rows(), positions=7).double()
    source = torch.randn(2, 7, 5, dtype=torch.float64)
    ids = torch.tensor([[1, 2, 3], [1, 2, 3]])
    out = model(source, ids)
    other = model(torch.stack([source[0], source[0]]), ids)
    torch.testing.assert_close(out[0], other[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(out[1], other[1])
    later = model(source, torch.tensor([[1, 2, 9], [1, 2, 9]]))
    torch.testing.assert_close(later[:, :2], out[:, :2], rtol=1e-12, atol=1e-12)


def test_suppressed_tokens_are_not_picked() -> None:
    pick = suppress(greedy, always=(2,), first=(1,))
    logits = torch.tensor([[0.0, 2.0, 3.0, 1.0]])
    kept = logits.clone()
    ended = torch.tensor([False])
    assert pick(logits, History(torch.tensor([[0]]), 1, None, ended)).tolist() == [3]
    assert pick(logits, History(torch.tensor([[0, 0]]), 1, None, ended)).tolist() == [1]
    torch.testing.assert_close(logits, kept)


def test_long_recordings_are_read_in_windows(model: Whisper) -> None:
    waveform, _ = stored_clip()
    silent = torch.zeros(480_000 - len(waveform))
    heard = transcribe(model, torch.cat([waveform, silent, waveform]), tokens=24)
    assert heard.lower().count("amiable himself") == 2


def test_transcription_refuses_what_it_cannot_read(model: Whisper) -> None:
    with pytest.raises(ValueError, match="samples of the waveform"):
        transcribe(model, torch.zeros(0))
    with pytest.raises(ValueError, match="no tokens of speech"):
        transcribe(Whisper(SMALL, frames=17), torch.zeros(100))
    with pytest.raises(ValueError, match="longer than half a window"):
        log_mel(torch.zeros(200))
    with pytest.raises(ValueError, match="low_hz must lie in"):
        mel_filters(rate_hz=16000, fft=400, mels=80, low_hz=9000.0)
    with pytest.raises(ValueError, match="dim must be even"):
        Whisper(
            TransformerConfig(
                vocab=2, dim=9, layers=1, heads=3, ff_dim=4, context=4, positions=Learned()
            )
        )


# The files


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    content = data.locate("whisper", "model/model.bin").read_bytes()
    for wrong in (b"", b"\7" + content[1:100], content[: len(content) // 2]):
        with pytest.raises(data.CorruptDataError, match="not a Whisper of CTranslate2"):
            read_ctranslate2(wrong)
    path = tmp_path / "two.wav"
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(2)
        stream.setsampwidth(2)
        stream.setframerate(16000)
        stream.writeframes(bytes(16))
    with pytest.raises(data.CorruptDataError, match="one channel of 16 bits"):
        read_wave(path)
    path.write_bytes(b"no")
    with pytest.raises(data.CorruptDataError, match="not a WAV file"):
        read_wave(path)
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(8000)
        stream.writeframes(np.array([0, 16384, -32768], dtype="<i2").tobytes())
    samples, rate = read_wave(path)
    assert (samples.tolist(), rate) == ([0.0, 0.5, -1.0], 8000)


def test_absent_speech_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(data.MissingDataError, match="apt-get install pocketsphinx-testdata"):
        data.speech(directory=tmp_path)


def test_ctc_hides_no_nan_behind_infinity() -> None:
    log_p = torch.full((3, 2, 4), 0.25, dtype=torch.float64).log()
    log_p[1, 0] = math.nan
    targets, frames, lengths = torch.tensor([[1], [2]]), torch.tensor([3, 3]), torch.tensor([1, 1])
    loss = ctc_loss(log_p, targets, frames, lengths, reduction="none")
    assert loss.isnan().tolist() == [True, False]


def test_the_first_token_is_the_first_behind_the_prompt() -> None:
    pick = suppress(greedy, first=(1,))
    logits, ended = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([False])
    prompt = torch.tensor([[0, 0]])  # Whisper's has two tokens
    assert pick(logits, History(prompt, 2, None, ended)).tolist() == [2]
    assert pick(logits, History(torch.tensor([[0, 0, 2]]), 2, None, ended)).tolist() == [1]


def test_bins_of_an_odd_transform_stand_where_they_are() -> None:
    # The last of 5 bins of a transform of 9 lies at 4/9 of the rate, not at half of it.
    filters = mel_filters(
        rate_hz=900, fft=9, mels=1, scale="htk", unit_area=False, dtype=torch.float64
    )
    mel = 2595 * math.log10(1 + 450 / 700) / 2
    center = 700 * (10 ** (mel / 2595) - 1)
    by_hand = [min(f / center, (450 - f) / (450 - center)) for f in (0, 100, 200, 300, 400)]
    torch.testing.assert_close(filters[:, 0], torch.tensor(by_hand, dtype=torch.float64))


def test_edges_of_sound_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="shorter than the hop"):
        log_mel(torch.rand(300), hop=500)
    log_p = torch.full((3, 1, 2), 0.5).log()
    one = torch.tensor([1])
    for blank in (-1, 7):
        with pytest.raises(ValueError, match="blank"):
            ctc_loss(log_p, one[None], torch.tensor([3]), one, blank=blank)
