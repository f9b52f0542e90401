"""Word vectors: training on Shakespeare and the King James Bible."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._pair import Pair, Side
from companion import data
from companion.foundations.embeddings import (
    Schedule,
    Vocabulary,
    cooccurrence,
    corpus,
    noise_distribution,
    tokenize,
    train_fasttext,
    train_glove,
    train_sgns,
)

EPOCHS, DIM = 1, 100
GLOVE_WORDS, GLOVE_STEPS = 4000, 5


def _documents() -> list[list[str]]:
    return [tokenize(data.shakespeare()), tokenize(data.bible())]


def _sentences() -> list[list[str]]:
    return [d[i : i + 1000] for d in _documents() for i in range(0, len(d), 1000)]


def _loss(words: Tensor, contexts: Tensor) -> float:
    """The loss of skip-gram with negatives on a sample of neighbors, in nats a pair."""
    text = corpus(_documents(), min_count=5)
    g = torch.Generator().manual_seed(7)
    places = torch.randint(5, len(text.ids) - 5, (200_000,), generator=g)
    offsets = torch.randint(1, 6, places.shape, generator=g)
    centers, near = text.ids[places].long(), text.ids[places + offsets].long()
    noise = noise_distribution(text.vocabulary.counts).float()
    loss = -F.logsigmoid((words[centers] * contexts[near]).sum(1)).mean()
    used = centers.unique()
    share = torch.bincount(centers, minlength=len(words)).float() / len(centers)
    for chunk in used.split(1000):
        against = F.softplus(words[chunk] @ contexts.T) @ noise
        loss = loss + 5 * (share[chunk] * against).sum()
    return float(loss)


def _ours(train: Callable[..., Any]) -> Callable[[torch.device], Side]:
    def make(device: torch.device) -> Side:
        text = corpus(_documents(), min_count=5)
        schedule = Schedule(formula="code", epochs=EPOCHS, workers=torch.get_num_threads())

        def run() -> tuple[Tensor, Tensor]:
            g = torch.Generator().manual_seed(0)
            model = train(text, dim=DIM, schedule=schedule, generator=g)
            return model.vectors, model.contexts

        return run

    return make


def _gensim(kind: str) -> Callable[[torch.device], Side]:
    def make(device: torch.device) -> Side:
        import gensim.models

        sentences = _sentences()
        options: dict[str, Any] = {
            "vector_size": DIM,
            "window": 5,
            "negative": 5,
            "sg": 1,
            "min_count": 5,
            "sample": 1e-3,
            "seed": 0,
            "workers": torch.get_num_threads(),
        }
        if kind == "FastText":
            options["bucket"] = 200_000
        order = corpus(_documents(), min_count=5).vocabulary.words
        prepared = getattr(gensim.models, kind)(**options)
        prepared.build_vocab(sentences)

        def run() -> tuple[Tensor, Tensor]:
            # Vocabulary and tables are made beforehand, as for ours; only training is timed. A
            # repetition trains on, which costs the same.
            model = prepared
            model.train(sentences, total_examples=model.corpus_count, epochs=EPOCHS)
            rows = [model.wv.key_to_index[word] for word in order]
            return torch.tensor(model.wv.vectors[rows]), torch.tensor(model.syn1neg[rows])

        return run

    return make


def _as_good(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Hold the loss on a sample of neighbors to within 1 % of the peer's."""
    mine, its = _loss(*ours), _loss(*theirs)
    assert mine <= 1.01 * its, f"loss {mine:.4f} nats a pair against {its:.4f}"


def _counts() -> tuple[Vocabulary, Tensor]:
    """The co-occurrences of the most frequent words."""
    text = corpus(_documents(), min_count=5)
    size, words = len(text.vocabulary), GLOVE_WORDS
    whole = cooccurrence(text.ids.long(), size=size, window=10, weighting="harmonic")
    table = whole.index_select(0, torch.arange(words)).index_select(1, torch.arange(words))
    return Vocabulary(text.vocabulary.words[:words], text.vocabulary.counts[:words]), table


def _glove_ours(device: torch.device) -> Side:
    vocabulary, counts = _counts()

    def run() -> float:
        g = torch.Generator().manual_seed(0)
        model = train_glove(
            vocabulary, counts, dim=DIM, epochs=EPOCHS, generator=g, dtype=torch.float64
        )
        return float(model.losses[-1])

    return run


def _glove_theirs(device: torch.device) -> Side:
    import numpy as np
    from mittens import GloVe

    _, counts = _counts()
    dense = counts.to_dense().numpy()
    cells = np.count_nonzero(dense)

    def run() -> float:
        np.random.seed(0)  # noqa: NPY002 (the peer draws from the global generator)
        model = GloVe(n=DIM, max_iter=GLOVE_STEPS, display_progress=0)
        model.fit(dense)
        return float(2 * model.errors[-1] / cells)  # theirs is half of a sum

    return run


def _as_low(ours: float, theirs: float) -> None:
    """Hold the objective, a mean over the cells, to within 1 % of the peer's."""
    assert ours <= 1.01 * theirs, f"objective {ours:.4f} against {theirs:.4f}"


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    task = f"one epoch of Shakespeare and the Bible, {DIM} dimensions"
    yield Pair(
        name="embedding/sgns",
        task=task,
        peer="gensim Word2Vec, as many workers",
        needs=["gensim"],
        ours=_ours(train_sgns),
        theirs=_gensim("Word2Vec"),
        same=_as_good,
        speed=1.0,
        seconds=0.1,
        rounds=2,
        note=(
            "Compared by their loss on a sample of neighbors: ours at most 1 % above. The peer "
            "works in place, word by word; ours holds the pairs of a chunk."
        ),
        devices=("cpu",),
    )
    yield Pair(
        name="embedding/fasttext",
        task=task,
        peer="gensim FastText, as many workers",
        needs=["gensim"],
        ours=_ours(train_fasttext),
        theirs=_gensim("FastText"),
        same=_as_good,
        seconds=0.1,
        rounds=2,
        note=(
            "Compared like the pair before. The peer's inner loop is C and works in place; ours "
            "is PyTorch's indexed sums over the n-grams of a whole chunk of pairs."
        ),
        devices=("cpu",),
    )
    yield Pair(
        name="embedding/glove",
        task=f"GloVe of {GLOVE_WORDS:,} words, one epoch, {DIM} dimensions",
        peer="mittens (NumPy), steps on the whole matrix until the objective is as low",
        needs=["mittens"],
        ours=_glove_ours,
        theirs=_glove_theirs,
        same=_as_low,
        seconds=0.1,
        rounds=2,
        note=(
            "gensim has no GloVe. The peer takes steps on the dense matrix, whose time and memory "
            "grow as the square of the vocabulary; ours visits the non-empty cells in random "
            "order, as the paper does."
        ),
        devices=("cpu",),
    )
