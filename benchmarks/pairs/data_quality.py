"""MinHash signatures, from texts to numbers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks._pair import Pair, Side
from companion import data
from companion.knowledge.data_quality import jaccard, minhash, shingles, signature_jaccard

TEXTS, WORDS, K = 400, 500, 128


def _texts() -> list[str]:
    words = data.shakespeare().split()
    return [" ".join(words[i : i + WORDS]) for i in range(0, TEXTS * WORDS, WORDS)]


def _runs(text: str) -> list[str]:
    """The different shingles of a text, as the peers take them."""
    words = text.lower().split()
    return list({" ".join(words[i : i + 5]) for i in range(len(words) - 4)})


def _ours(device: torch.device) -> Side:
    texts = _texts()
    return lambda: minhash([shingles(text) for text in texts], k=K)


def _hashed(device: torch.device) -> Side:
    sets = [shingles(text) for text in _texts()]
    return lambda: minhash(sets, k=K)


def _datasketch(device: torch.device) -> Side:
    from datasketch import MinHash

    texts = _texts()

    def sign() -> Tensor:
        made = []
        for text in texts:
            signature = MinHash(K)
            signature.update_batch([run.encode() for run in _runs(text)])
            made.append(torch.from_numpy(signature.hashvalues.astype("int64")))
        return torch.stack(made)

    return sign


def _rensa_whole(device: torch.device) -> Side:
    from rensa import RMinHash

    texts = _texts()

    def sign() -> list[Any]:
        made = []
        for text in texts:
            signature = RMinHash(num_perm=K, seed=1)
            signature.update(_runs(text))
            made.append(signature.digest())
        return made

    return sign


def _rensa_update(device: torch.device) -> Side:
    from rensa import RMinHash

    texts = [_runs(text) for text in _texts()]

    def sign() -> list[Any]:
        made = []
        for runs in texts:
            signature = RMinHash(num_perm=K, seed=1)
            signature.update(runs)
            made.append(signature.digest())
        return made

    return sign


def _estimates(ours: Any, theirs: Any) -> None:
    """Hash values differ; the similarities that they estimate must be those of the texts."""
    peer = torch.tensor(theirs) if isinstance(theirs, list) else theirs
    assert ours.shape == peer.shape
    sets = [shingles(text) for text in _texts()[:40]]
    true = torch.stack([jaccard(sets[0], some) for some in sets])
    for signatures in (ours, peer):
        told = signature_jaccard(signatures[:1].expand(40, K), signatures[:40])
        assert float((told - true).abs().max()) < 0.1


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    task = f"{K} entries for each of {TEXTS} texts of {WORDS} words"
    yield Pair(
        name="minhash/datasketch",
        task=f"{task}, from the text",
        peer="datasketch",
        needs=["datasketch"],
        ours=_ours,
        theirs=_datasketch,
        same=_estimates,
        speed=5.0,
        devices=("cpu",),
    )
    yield Pair(
        name="minhash/rensa",
        task=f"{task}, from the text",
        peer="rensa (Rust)",
        needs=["rensa"],
        ours=_ours,
        theirs=_rensa_whole,
        same=_estimates,
        speed=0.5,
        note="Most of the peer's time goes into making strings of its shingles in Python.",
        devices=("cpu",),
    )
    yield Pair(
        name="minhash/rensa-ready",
        task=f"{task}, from their shingles",
        peer="rensa (Rust)",
        needs=["rensa"],
        ours=_hashed,
        theirs=_rensa_update,
        same=_estimates,
        speed=0.5,
        note="The peer hashes strings that are ready, and the companion takes numbers that are.",
        devices=("cpu",),
    )
