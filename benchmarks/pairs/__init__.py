"""All pairs, by name, in the order of the table."""

from benchmarks._pair import Pair
from benchmarks.pairs import (
    attention,
    data_quality,
    embeddings,
    graphs,
    losses,
    models,
    multiscale,
    norms,
    optimizers,
    quantized,
    tokenization,
    training,
)

__all__ = ["PAIRS"]

PAIRS: dict[str, Pair] = {
    pair.name: pair
    for module in (
        embeddings,
        tokenization,
        losses,
        optimizers,
        attention,
        multiscale,
        norms,
        models,
        quantized,
        data_quality,
        training,
        graphs,
    )
    for pair in module.pairs()
}
