"""All pairs, by name, in the order of the table."""

from benchmarks._pair import Pair
from benchmarks.pairs import (
    attention,
    constraints,
    data_quality,
    debiasing,
    embeddings,
    fairness,
    generation,
    graphs,
    interpretability,
    losses,
    models,
    multimodal,
    multiscale,
    norms,
    optimizers,
    quantized,
    rewards,
    robustness,
    scores,
    sparse,
    tagging,
    tokenization,
    training,
)

__all__ = ["PAIRS"]

PAIRS: dict[str, Pair] = {
    pair.name: pair
    for module in (
        embeddings,
        tokenization,
        tagging,
        losses,
        optimizers,
        attention,
        sparse,
        multiscale,
        norms,
        models,
        quantized,
        generation,
        constraints,
        data_quality,
        training,
        interpretability,
        fairness,
        debiasing,
        graphs,
        robustness,
        multimodal,
        rewards,
        scores,
    )
    for pair in module.pairs()
}
