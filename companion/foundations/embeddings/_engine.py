r"""The training engine: text goes in as blocks, tables of vectors come out.

Every step takes a stretch of text, computes the gradients of all its windows with a few matrix
products (:func:`~companion.foundations.embeddings.block_gradients`) and adds them to the rows that
occur; a word that occurs twice in the stretch receives both. There is no loop over tokens.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from companion.core import check_count, check_in_range
from companion.foundations.embeddings._corpus import (
    Corpus,
    keep_probability,
    noise_distribution,
)

__all__ = ["Chunk", "Sampler", "Schedule", "initial_tables", "run"]

# Tokens whose random choices are drawn at once: large enough to spread the cost, small enough to
# bound the memory on long texts. A window never crosses from one chunk into the next.
_CHUNK = 1 << 17
_REPORTS = 100


@dataclass(frozen=True, kw_only=True)
class Schedule:
    r"""How Word2Vec and fastText go through a text.

    Args:
        window: Largest distance :math:`m` to a context word. Each center draws its own reach
            uniformly from 1 to :math:`m`, so near words count more.
        negatives: Negatives :math:`k` for each positive pair.
        epochs: Passes through the text.
        learning_rate: Step size at the start; it falls linearly. The default is a little below the
            0.025 of word2vec, since shared negatives make the gradient noisier.
        min_learning_rate: Step size at the end.
        threshold: Subsampling threshold :math:`t`; ``None`` keeps every token.
        formula: Which subsampling formula, see
            :func:`~companion.foundations.embeddings.keep_probability`.
        noise_power: Exponent of the noise distribution.
        block: Centers in a block, which share their negatives; at least ``2 * window``.
        shared: Negatives that a block draws, one from each of as many equal slices of the noise
            distribution. More make the gradient less noisy and a step slower.
        blocks: Blocks in a step, or ``None`` to choose, see :meth:`blocks_for`.
        workers: Threads that update the tables at the same time without locks. The result is
            reproducible with one.

    Raises:
        ValueError: If a setting is out of range.

    Book:
        :doc:`/book/foundations/embeddings`
    """

    window: int = 5
    negatives: int = 5
    epochs: int = 5
    learning_rate: float = 0.02
    min_learning_rate: float = 1e-4
    threshold: float | None = 1e-3
    formula: Literal["paper", "code"] = "paper"
    noise_power: float = 0.75
    block: int = 16
    shared: int = 32
    blocks: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("window", "negatives", "epochs", "shared", "workers"):
            check_count(name, getattr(self, name))
        if self.blocks is not None:
            check_count("blocks", self.blocks)
        check_in_range("learning_rate", self.learning_rate, low=0.0, open_low=True)
        check_in_range("min_learning_rate", self.min_learning_rate, low=0.0)
        if self.block < 2 * self.window:
            raise ValueError(
                f"block must be at least 2 * window = {2 * self.window}, got {self.block}"
            )

    def blocks_for(
        self, counts: Int[Tensor, " vocab"], *, predict: Literal["context", "center"] = "context"
    ) -> int:
        r"""Choose how many blocks a step can take and stay stable.

        All gradients of a step are taken at the same tables. The most frequent negative receives
        them :math:`B b\, (m + 1)\, k \max_c P_n(c)` times in the mean (in CBOW, with one prediction
        a window, without the factor :math:`m + 1`); its logistic losses curve
        by at most :math:`\lVert v \rVert^2 / 4` each, so a step of :math:`\eta` on their sum
        overshoots when :math:`\eta` times that number exceeds :math:`8 / \lVert v \rVert^2`. Norms
        reach about 2. The choice keeps the product at 1 or below, half of the limit.

        Args:
            counts: How often each word of the vocabulary occurs.
            predict: ``"context"`` for skip-gram and fastText, ``"center"`` for CBOW.

        Returns:
            Number of blocks, 1 to 64.
        """
        if self.blocks is not None:
            return self.blocks
        top = float(noise_distribution(counts, power=self.noise_power).max())
        pairs = self.window + 1 if predict == "context" else 1
        load = self.learning_rate * self.block * pairs * self.negatives * top
        return int(min(64, max(1.0, 1.0 / load)))


@dataclass(frozen=True, eq=False)
class Chunk:
    """The random choices of some steps.

    Args:
        centers: For each step the ids of its centers.
        around: For each step, block after block, the ids of the words within reach.
        others: For each step, block after block, the ids to be scored: the words within reach (in
            CBOW the centers), then the negatives that the block shares.
        rows: For each step and center its row in the tables of
            :func:`~companion.foundations.embeddings._blocks.window_masks`.
        tokens: How much of the original text this covers.
    """

    centers: Int[Tensor, "step center"]
    around: Int[Tensor, "step near"]
    others: Int[Tensor, "step other"]
    rows: Int[Tensor, "step center"]
    tokens: int


class Sampler:
    """Draws subsampling, reaches and negatives for a corpus, a chunk at a time."""

    def __init__(
        self,
        corpus: Corpus,
        schedule: Schedule,
        *,
        device: torch.device,
        predict: Literal["context", "center"],
    ) -> None:
        self.corpus, self.schedule = corpus, schedule
        self.device, self.predict = device, predict
        counts = corpus.vocabulary.counts
        self.blocks = schedule.blocks_for(counts, predict=predict)
        self.keep: Tensor | None = None
        if schedule.threshold is not None:
            keep = keep_probability(counts, threshold=schedule.threshold, formula=schedule.formula)
            self.keep = keep.float().to(corpus.ids.device)
        noise = noise_distribution(counts, power=schedule.noise_power)
        self.cumulative = noise.cumsum(0)
        # Rounding may leave the last entry below 1, and a draw above it would have no word.
        self.cumulative[-1] = 1.0

    def chunks(self) -> list[tuple[int, int]]:
        """Return start and end of every chunk, epoch after epoch."""
        size = len(self.corpus)
        once = [(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]
        return once * self.schedule.epochs

    def draw(self, start: int, end: int, *, generator: torch.Generator) -> Chunk:
        """Draw the random choices for a stretch of the text."""
        plan, window, source = self.schedule, self.schedule.window, generator.device
        ids, documents = self.corpus.ids[start:end], self.corpus.documents[start:end]
        if self.keep is not None:
            drawn = torch.rand(len(ids), generator=generator, device=source).to(ids.device)
            kept = drawn < self.keep[ids]
            ids, documents = ids[kept], documents[kept]
        size = len(ids)
        reach = torch.randint(1, window + 1, (size,), generator=generator, device=source)
        reach = reach.to(ids.device)
        # Near the ends of a document the reach is cut.
        lengths = torch.unique_consecutive(documents, return_counts=True)[1]
        ends = lengths.cumsum(0)
        place = torch.arange(size, device=ids.device)
        left = torch.minimum(reach, place - (ends - lengths).repeat_interleave(lengths))
        right = torch.minimum(reach, ends.repeat_interleave(lengths) - 1 - place)

        per_step = plan.block * self.blocks
        steps = max(1, -(-size // per_step))
        padding = steps * per_step - size
        # Padding has no word in reach, so all of its coefficients are zero.
        left, right = (F.pad(side, (0, padding)) for side in (left, right))
        within = torch.arange(steps * per_step, device=ids.device) % plan.block
        rows = (within * (window + 1) + left) * (window + 1) + right
        padded = F.pad(ids, (window, window + padding))
        centers = padded[window : window + steps * per_step]
        around = padded.unfold(0, plan.block + 2 * window, plan.block)
        scored = around if self.predict == "context" else centers.view(-1, plan.block)
        others = torch.cat([scored, self._negatives(len(around), generator).to(ids.device)], dim=1)
        return Chunk(
            centers=centers.view(steps, -1).to(self.device),
            around=around.reshape(steps, -1).to(self.device),
            others=others.view(steps, -1).to(self.device),
            rows=rows.view(steps, -1).to(self.device),
            tokens=end - start,
        )

    def _negatives(self, blocks: int, generator: torch.Generator) -> Tensor:
        # Stratified: one draw from each slice of the noise distribution, frequent words first. The
        # mean over the slots of a block is that of independent draws; its variance is smaller.
        source, shared = generator.device, self.schedule.shared
        within = torch.rand(blocks, shared, generator=generator, device=source, dtype=torch.float64)
        quantiles = (torch.arange(shared, device=source) + within) / shared
        return torch.searchsorted(self.cumulative.to(source), quantiles, right=True)


def initial_tables(
    corpus: Corpus,
    rows: int,
    dim: int,
    *,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Draw small word vectors and zero context vectors, as word2vec starts."""
    check_count("dim", dim)
    drawn = torch.rand(rows, dim, generator=generator, device=generator.device, dtype=dtype)
    contexts = torch.zeros(len(corpus.vocabulary), dim, device=device, dtype=dtype)
    return ((drawn - 0.5) / dim).to(device), contexts


#: A step takes a chunk, its number in the chunk, the learning rate, and whether to report the loss.
Step = Callable[[Chunk, int, float, bool], Tensor | None]


def run(
    sampler: Sampler,
    step: Step,
    *,
    generator: torch.Generator,
    prepare: Callable[[Chunk], None] | None = None,
) -> Float[Tensor, " report"]:
    """Take all steps of all epochs, with a learning rate that falls linearly.

    With more than one worker, threads update the same tables without locks (Recht et al. 2011,
    arXiv:1106.5730), as the released word2vec does, and two runs differ a little.
    """
    plan, chunks = sampler.schedule, sampler.chunks()
    before = [0]
    for start, end in chunks:
        before.append(before[-1] + end - start)
    total, per_step = before[-1], plan.block * sampler.blocks
    every = max(1, total // (per_step * _REPORTS))
    reports: dict[int, Tensor] = {}

    def work(jobs: Iterator[int], source: torch.Generator) -> None:
        for job in jobs:
            if job >= len(chunks):
                return
            chunk = sampler.draw(*chunks[job], generator=source)
            if prepare is not None:
                prepare(chunk)
            steps = len(chunk.rows)
            for number in range(steps):
                done = (before[job] + chunk.tokens * number / steps) / total
                rate = plan.learning_rate + done * (plan.min_learning_rate - plan.learning_rate)
                place = before[job] // per_step + number
                loss = step(chunk, number, rate, place % every == 0)
                if loss is not None:
                    reports[place] = loss

    # A step is too small to be worth spreading over threads, and waiting for one that another
    # process holds up costs far more than it gains. So each worker is one thread.
    had = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if plan.workers == 1:
            work(count(), generator)
        else:
            _in_threads(work, plan.workers, generator)
    finally:
        torch.set_num_threads(had)
    losses = torch.stack([reports[place] for place in sorted(reports)]).float().cpu()
    if not bool(torch.isfinite(losses).all()):
        raise ValueError(
            f"training diverged: lower learning_rate = {plan.learning_rate}, or block = "
            f"{plan.block}, which matters for a vocabulary of few words"
        )
    return losses


def _in_threads(
    work: Callable[[Iterator[int], torch.Generator], None],
    workers: int,
    generator: torch.Generator,
) -> None:
    seeds = torch.randint(2**62, (workers,), generator=generator, device=generator.device)
    numbers, lock = count(), threading.Lock()
    errors: list[BaseException] = []

    def taken() -> Iterator[int]:
        while not errors:
            with lock:
                job = next(numbers)
            yield job

    def guarded(seed: int) -> None:
        try:
            work(taken(), torch.Generator(device=generator.device).manual_seed(seed))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in seeds.tolist()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
