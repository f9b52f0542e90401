"""Align pictures of emoji with their names, and write down ten clips of speech.

About ten minutes of one core. The speech needs a package of Debian (``apt-get download
pocketsphinx-testdata; dpkg-deb -x pocketsphinx-testdata*.deb FOLDER``, then ``--speech
FOLDER/usr/share``). Pictures: OpenMoji, CC BY-SA 4.0; names: Unicode CLDR. One clip of speech is
kept, with 8 bits a sample: LibriVox, public domain, from PocketSphinx (BSD-2-Clause).

A fifth of the emoji is held out, by groups of names that differ only in who is shown (woman, man,
person); flags of countries are left out, whose names nobody could read from a picture.
"""

import argparse
import base64
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from companion import data
from companion.core import generator
from companion.knowledge import multimodal as mm
from companion.models import TextEncoder, generate, greedy, minilm
from companion.transformer.block import Learned, TransformerConfig

sys.path.insert(0, str(Path(__file__).parent))
from _store import store

SEEDS = (0, 1, 2)
DIM, BATCH, STEPS = 128, 256, 100  # more steps raise the loss on what is held out, see the curve
WHO = ["woman", "man", "person", "women", "men", "people", "boy", "girl", "child", "adult", "older"]
TEMPLATES = (
    "{}",
    "an emoji of {}",
    "a picture of {}",
    "a drawing of {}",
    "a small icon: {}",
    "the symbol for {}",
)
#: Words that name a class, with pictures whose names hold exactly one of them.
CLASSES = ["face", "heart", "hand", "arrow", "button", "clock"]
CLASSES += ["moon", "cat", "family", "square", "ball", "keycap"]
#: Blocks of Unicode by their first and last code: where an emoji stands.
BLOCKS = {
    "symbols and dingbats": (0x2000, 0x2BFF),
    "enclosed characters": (0x1F100, 0x1F2FF),
    "pictographs": (0x1F300, 0x1F5FF),
    "emoticons": (0x1F600, 0x1F64F),
    "transport": (0x1F680, 0x1F6FF),
    "supplement": (0x1F900, 0x1F9FF),
    "extension": (0x1FA70, 0x1FAFF),
}


@dataclass(frozen=True, eq=False)
class Emoji:
    """Pictures as features and as pixels, and names as vectors and as text."""

    pictures: Tensor
    pixels: Tensor
    texts: Tensor
    captions: list[str]
    blocks: Tensor
    groups: list[str]

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers of those to train on and of those held out."""
        names = sorted(set(self.groups))
        order = torch.randperm(len(names), generator=generator(seed)).tolist()
        out = {names[i] for i in order[: len(names) // 5]}
        held = torch.tensor([group in out for group in self.groups])
        return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def group_of(caption: str) -> str:
    """A name without who is shown."""
    words = re.findall(r"[^\W_]+|#|\*", caption.lower())
    kept = sorted({word for word in words if word not in WHO})
    return " ".join(kept) or caption


def block_of(sequence: str) -> int:
    """Number of the block of the first character; -1 for others."""
    code = ord(sequence[0])
    for number, (low, high) in enumerate(BLOCKS.values()):
        if low <= code <= high:
            return number
    return -1


def read_emoji(text: TextEncoder, *, limit: int | None = None) -> Emoji:
    """Draw the emoji, and describe pictures and names by frozen towers."""
    large, small = data.emoji_images(size=224), data.emoji_images(size=32)
    keep = [i for i, s in enumerate(large.emoji) if not 0x1F1E6 <= ord(s[0]) <= 0x1F1FF]
    keep = keep[:: 1 if limit is None else max(1, len(keep) // limit)]
    net = mm.efficientnet_lite0()
    with torch.inference_mode():
        rows = [net.features(some) for some in large.images[keep].split(16)]
    captions = [large.captions["en"][i] for i in keep]
    return Emoji(
        torch.cat(rows).clone(),
        (small.images[keep].float() - 127) / 128,
        text.embed(captions).clone(),
        captions,
        torch.tensor([block_of(large.emoji[i]) for i in keep]),
        [group_of(caption) for caption in captions],
    )


def batches(rows: Tensor, seed: int, steps: int) -> list[Tensor]:
    """Rows in random order, again and again."""
    g, found = generator(100 + seed), []
    while len(found) < steps:
        order = rows[torch.randperm(len(rows), generator=g)]
        found += [b for b in order.split(BATCH) if len(b) == min(BATCH, len(rows))]
    return found[:steps]


def align(
    emoji: Emoji,
    rows: Tensor,
    seed: int,
    *,
    sigmoid: bool = False,
    temperature: float = 0.07,
    learned: bool = True,
    tower: nn.Module | None = None,
    steps: int = STEPS,
    watched: Tensor | None = None,
) -> tuple[mm.DualEncoder, list[list[float]]]:
    """Train maps into a common space; a tower reads pixels and is trained as well."""
    wide = emoji.pictures.shape[1] if tower is None else DIM
    n = min(BATCH, len(rows))
    start = mm.siglip_bias(n) if sigmoid else 0.0
    model = mm.DualEncoder(
        wide,
        emoji.texts.shape[1],
        dim=DIM,
        temperature=0.1 if sigmoid else temperature,
        bias=start,
        generator=generator(seed),
    )
    model.log_scale.requires_grad_(learned)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if tower is not None:
        parameters += list(tower.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    curve = []
    for step, some in enumerate(batches(rows, seed, steps)):
        if watched is not None and step in (0, 1, 2, 5, 10, 20, 50, 100, 200):
            curve.append([step, *state(model, emoji, watched)])
        seen = emoji.pictures[some] if tower is None else tower(emoji.pixels[some])
        U, V = model(seen, emoji.texts[some])
        if sigmoid:
            loss = mm.siglip_loss(U, V, model.log_scale, model.bias)
        else:
            loss = mm.clip_loss(U, V, model.log_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.limit_()
    if watched is not None:
        curve.append([steps, *state(model, emoji, watched)])
    return model.requires_grad_(False), curve


def state(model: mm.DualEncoder, emoji: Emoji, rows: Tensor) -> list[float]:
    """Gap, loss and recall of held-out pairs."""
    with torch.no_grad():
        U, V = model(emoji.pictures[rows], emoji.texts[rows])
        loss = mm.clip_loss(U, V, model.log_scale)
        hits = mm.recall_at(U @ V.T, torch.arange(len(rows)), 10).mean()
    return rounded([mm.modality_gap(U, V).norm(), loss, hits])


def rounded(values: Any) -> list[float]:
    """Plain numbers, to five digits."""
    return [float(f"{float(value):.5g}") for value in values]


def recalls(U: Tensor, V: Tensor) -> dict[str, list[float]]:
    """Recall at 1, 5 and 10, from pictures to names and back."""
    ids = torch.arange(len(U))
    return {
        way: rounded(mm.recall_at(scores, ids, k).mean() for k in (1, 5, 10))
        for way, scores in (("to_text", U @ V.T), ("to_image", V @ U.T))
    }


class Residual(nn.Sequential):
    """A small residual network for pictures of 32 x 32."""

    def __init__(self) -> None:
        super().__init__(
            mm.ResidualBlock(3, 32, stride=2),
            mm.ResidualBlock(32, 64, stride=2),
            mm.ResidualBlock(64, DIM, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def gap_of(emoji: Emoji, train: Tensor, test: Tensor, seed: int) -> dict[str, Any]:
    """The modality gap: as training goes, by temperature, and what closing it does."""
    _, curve = align(emoji, train, seed, watched=test, steps=300)
    model, _ = align(emoji, train, seed)
    U, V = model(emoji.pictures[test], emoji.texts[test])
    shifts = []
    for ratio in (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
        A, B = mm.shift_gap(U, V, ratio)
        hits = mm.recall_at(A @ B.T, torch.arange(len(A)), 10).mean()
        loss = mm.clip_loss(A, B, model.log_scale)
        shifts.append(rounded([ratio, mm.modality_gap(A, B).norm(), loss, hits]))
    fixed = []
    for temperature in (0.02, 0.07, 0.3, 1.0):
        held, _ = align(emoji, train, seed, temperature=temperature, learned=False)
        fixed.append([temperature, *state(held, emoji, test)])
    return {"curve": curve, "shifts": shifts, "fixed": fixed, "scale": float(model.log_scale.exp())}


def zero_shot(
    emoji: Emoji, text: TextEncoder, model: mm.DualEncoder, test: Tensor
) -> dict[str, Any]:
    """Classes by name alone: by each template, and by the mean of all."""
    words = [set(re.findall(r"[a-z]+", emoji.captions[i].lower())) for i in test.tolist()]
    labels = [[c for c, name in enumerate(CLASSES) if name in w] for w in words]
    one = [k for k, found in enumerate(labels) if len(found) == 1]
    truth = torch.tensor([labels[k][0] for k in one])
    images = F.normalize(emoji.pictures[test[one]] @ model.first, dim=-1)
    filled = [text.embed([t.format(name) for name in CLASSES]) @ model.second for t in TEMPLATES]
    right = [(mm.zero_shot(images, classes) == truth).double().mean() for classes in filled]
    both = mm.zero_shot(images, mm.ensemble(torch.stack(filled))) == truth
    return {
        "each": rounded(right),
        "ensemble": float(both.double().mean()),
        "pictures": len(one),
        "largest": float(truth.bincount().max() / len(truth)),
    }


def matching(emoji: Emoji, train: Tensor, test: Tensor, seed: int) -> dict[str, Any]:
    """Image-text matching: train with easy or hard negatives, judge on both."""
    model, _ = align(emoji, train, seed)
    U, V = (F.normalize(x, dim=-1) for x in model(emoji.pictures, emoji.texts))
    scale = float(model.log_scale.exp())
    found: dict[str, Any] = {}
    for hard in (False, True):
        g = generator(seed)
        fuse = mm.LowRankFusion([DIM, DIM], rank=16, out=1, generator=g)
        optimizer = torch.optim.AdamW(fuse.parameters(), lr=3e-3, weight_decay=0.1)
        for some in batches(train, seed, STEPS):
            u, v = U[some], V[some]
            j = mm.itm_negatives(scale * u @ v.T, generator=g, hard=hard)
            loss = mm.itm_loss(fuse([u, v])[:, 0], fuse([u, v[j]])[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            u, v = U[test], V[test]
            true = fuse([u, v])[:, 0]
            for name, kind in (("easy", False), ("hard", True)):
                judge = generator(50 + seed)
                j = mm.itm_negatives(scale * u @ v.T, generator=judge, hard=kind)
                false = fuse([u, v[j]])[:, 0]
                wins = (true[:, None] > false).double().mean()
                found[f"{'hard' if hard else 'easy'}_on_{name}"] = float(f"{float(wins):.5g}")
    return found


def missing(emoji: Emoji, train: Tensor, test: Tensor, seed: int) -> dict[str, Any]:
    """Name the Unicode block from picture and name, when one of them may be missing."""
    known = emoji.blocks >= 0
    train, test = train[known[train]], test[known[test]]
    x, y = F.normalize(emoji.pictures, dim=1), F.normalize(emoji.texts, dim=1)
    classes, found = len(BLOCKS), {}
    prior = (emoji.blocks[train].bincount(minlength=classes) / len(train)).double().log()

    def fit(inputs: Any, wide: int, seed: int, p: float | None) -> nn.Module:
        g = generator(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(wide, 64), nn.GELU(), nn.Linear(64, classes))
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.1)
        for some in batches(train, seed, 200):
            shown = None
            if p is not None:
                shown = mm.modality_mask(len(some), 2, p=p, generator=g)
            loss = F.cross_entropy(net(inputs(some, shown)), emoji.blocks[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net.requires_grad_(False)

    def both(some: Tensor, shown: Tensor | None) -> Tensor:
        if shown is None:
            return torch.cat([x[some], y[some]], 1)
        return torch.cat([x[some] * shown[:, :1], y[some] * shown[:, 1:]], 1)

    wide = x.shape[1] + y.shape[1]
    truth = emoji.blocks[test]
    for name, p in (("early", None), ("early_dropout", 0.5)):
        net = fit(both, wide, seed, p)
        for what, shown in (("both", (1, 1)), ("image", (1, 0)), ("text", (0, 1))):
            mask = torch.tensor([shown]).expand(len(test), -1)
            right = (net(both(test, mask)).argmax(1) == truth).double().mean()
            found[f"{name}_{what}"] = float(f"{float(right):.5g}")
    alone = [
        fit(lambda some, _, z=z: z[some], z.shape[1], seed, None)(z[test]).double().log_softmax(1)
        for z in (x, y)
    ]
    joined = mm.late_fusion(alone, prior)
    for what, log_p in zip(("image", "text", "both"), (*alone, joined), strict=True):
        found[f"late_{what}"] = float(f"{float((log_p.argmax(1) == truth).double().mean()):.5g}")
    found["largest"] = float(truth.bincount().max() / len(truth))
    return found


class Pieces(nn.Module):
    """The 1,280 features, normalized, as four positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.LayerNorm(1280), nn.Linear(1280, 4 * dim))

    def positions(self, source: Tensor) -> int:
        return 4

    def forward(self, source: Tensor) -> Tensor:
        mapped: Tensor = self.map(source)
        return mapped.unflatten(1, (4, -1))


def captions(emoji: Emoji, train: Tensor, test: Tensor, seed: int) -> dict[str, Any]:
    """Write names: nats a word with the right picture, with another one, and the names.

    Words that stand once in the names of training are neither learned nor judged nor written.
    """
    split = [re.findall(r"[^\W_]+|[#*]", caption.lower()) for caption in emoji.captions]
    counts: dict[str, int] = {}
    for i in train.tolist():
        for word in split[i]:
            counts[word] = counts.get(word, 0) + 1
    known = {w: k + 4 for k, w in enumerate(sorted(w for w, c in counts.items() if c > 1))}
    longest = 8
    ids = torch.zeros(len(split), longest + 2, dtype=torch.long)  # 0: padding
    for i, words in enumerate(split):
        row = [1, *(known.get(w, 3) for w in words[:longest]), 2]
        ids[i, : len(row)] = torch.tensor(row)
    config = TransformerConfig(
        vocab=len(known) + 4, dim=96, layers=2, heads=4, ff_dim=192, context=longest + 2,
        positions=Learned(), dropout=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mm.SignalToText(config, front=Pieces(96), positions=4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
        for some in batches(train, seed, 300):
            loss = nll(model, emoji.pictures[some], ids[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    other = test[torch.randperm(len(test), generator=generator(seed))]
    with torch.no_grad():
        right = nll(model, emoji.pictures[test], ids[test])
        wrong = nll(model, emoji.pictures[other], ids[test])
    shown = test[:: max(1, len(test) // 12)][:12]
    start = torch.ones(len(shown), 1, dtype=torch.long)
    out = generate(
        model,
        start,
        tokens=longest,
        stop=(2,),
        source=emoji.pictures[shown],
        pick=mm.suppress(greedy, always=(0, 1, 3)),
    )
    names = {number: word for word, number in known.items()}
    written = [" ".join(names[k] for k in row if k > 3) for row in out.tolist()]
    return {
        "right": float(f"{float(right):.5g}"),
        "wrong": float(f"{float(wrong):.5g}"),
        "unknown": float((ids[test] == 3).sum() / (ids[test] > 2).sum()),
        "words": len(known),
        "pairs": [[emoji.captions[i], w] for i, w in zip(shown.tolist(), written, strict=True)],
    }


def nll(model: mm.SignalToText, source: Tensor, ids: Tensor) -> Tensor:
    """Mean nats a known word, the end included."""
    logits = model(source, ids[:, :-1])
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == 3, 0)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)


def plain(text: str) -> list[str]:
    """Words without case and punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower().replace("-", " "))


def listen(directory: str | None) -> dict[str, Any]:
    """Transcribe the clips, in silence and in noise."""
    clips = data.speech(directory=directory)
    model = mm.whisper()
    rows = []
    for clip in clips:
        heard = mm.transcribe(model, clip.waveform)
        errors = mm.word_errors(plain(clip.text), plain(heard))
        rows.append([clip.name, round(clip.seconds, 2), clip.text, heard, list(errors)])
    noise = []
    words = sum(len(plain(clip.text)) for clip in clips[:5])
    for decibels in (20, 10, 0, -5, -10):
        rates = []
        for seed in SEEDS:
            g, wrong = generator(seed), 0
            for clip in clips[:5]:
                power = clip.waveform.square().mean() / 10 ** (decibels / 10)
                sound = torch.randn(clip.waveform.shape, generator=g) * power.sqrt()
                heard = mm.transcribe(model, clip.waveform + sound)
                wrong += sum(mm.word_errors(plain(clip.text), plain(heard)))
            rates.append(round(wrong / words, 4))
        noise.append([decibels, rates])
    kept = clips[4]
    companded = torch.sign(kept.waveform) * torch.log1p(255 * kept.waveform.abs()) / math.log(256)
    codes = ((companded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return {
        "clips": rows,
        "noise": noise,
        "clip": {
            "name": kept.name,
            "text": kept.text,
            "rate": kept.rate_hz,
            "mu_law": base64.b64encode(codes.numpy().tobytes()).decode(),
            "notice": "LibriVox, public domain; from PocketSphinx, Copyright 1995-2014 Carnegie "
            "Mellon University, BSD-2-Clause.",
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Train, measure, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", help="folder with pocketsphinx/test/data")
    asked = parser.parse_args(argv)
    if asked.speech:  # what is stored names no folder of one machine
        sys.argv = [sys.argv[0], "--speech", "FOLDER/usr/share"]
    begin, cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)

    def told(what: str) -> None:
        print(f"{what}: {time.process_time() - cpu:.0f} s", flush=True)

    results: dict[str, Any] = {"speech": listen(asked.speech)}
    told("speech")
    text = minilm()
    emoji = read_emoji(text)
    told("features")
    results |= run(emoji, text, told)
    results["cpu_seconds"] = round(time.process_time() - cpu, 1)
    store("multimodal", results, seed=0, seconds=time.perf_counter() - begin)


def run(emoji: Emoji, text: TextEncoder, told: Any) -> dict[str, Any]:
    """All that is done with the emoji."""
    found: dict[str, Any] = {
        "emoji": len(emoji.captions),
        "blocks": list(BLOCKS),
        "templates": list(TEMPLATES),
        "classes": CLASSES,
        "seeds": [],
    }
    for seed in SEEDS:
        train, test = emoji.split(seed)
        row: dict[str, Any] = {"train": len(train), "test": len(test)}
        for name, options in (("clip", {}), ("siglip", {"sigmoid": True})):
            model, _ = align(emoji, train, seed, **options)
            U, V = model(emoji.pictures[test], emoji.texts[test])
            row[name] = recalls(U, V)
            if name == "clip":
                row["zero_shot"] = zero_shot(emoji, text, model, test)
                own = model(emoji.pictures[train], emoji.texts[train])
                row["clip_train"] = recalls(*own)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tower = Residual()
        model, _ = align(emoji, train, seed, tower=tower, steps=150)
        tower.eval()
        with torch.no_grad():
            U, V = model(tower(emoji.pixels[test]), emoji.texts[test])
        row["pixels"] = recalls(U, V)
        told(f"towers {seed}")
        row["gap"] = gap_of(emoji, train, test, seed)
        row["matching"] = matching(emoji, train, test, seed)
        row["missing"] = missing(emoji, train, test, seed)
        row["captions"] = captions(emoji, train, test, seed)
        told(f"rest {seed}")
        found["seeds"].append(row)
    return found


if __name__ == "__main__":
    main()
