r"""Word embeddings: lookup, Word2Vec, GloVe, fastText, and what they factorize.

Vectors are rows. A word :math:`w` has a word vector :math:`v_w` and, in the role of context, a
context vector :math:`u_c`; their product :math:`u_c \cdot v_w` is the score of the pair. Losses are
minimized, in nats.

Book: :doc:`/book/foundations/embeddings`
"""

from companion.foundations.embeddings._blocks import block_gradients, block_loss
from companion.foundations.embeddings._corpus import (
    Corpus,
    Vocabulary,
    cooccurrence,
    corpus,
    encode,
    keep_probability,
    noise_distribution,
    subsample,
    tokenize,
    vocabulary,
)
from companion.foundations.embeddings._engine import Schedule
from companion.foundations.embeddings._factorize import (
    expected_sgns_loss,
    pmi,
    ppmi,
    ppmi_svd,
    sgns_optimum,
    truncated_svd,
)
from companion.foundations.embeddings._fasttext import (
    FastTextEmbeddings,
    Subwords,
    character_ngrams,
    fnv1a,
    subword_vectors,
    subwords,
    train_fasttext,
)
from companion.foundations.embeddings._glove import (
    glove_gradients,
    glove_loss,
    glove_weight,
    train_glove,
)
from companion.foundations.embeddings._hierarchical import (
    hierarchical_softmax_loss,
    huffman_codes,
)
from companion.foundations.embeddings._losses import (
    cbow_gradients,
    cbow_loss,
    cbow_mean,
    embed,
    embed_gradient,
    sgns_gradients,
    sgns_loss,
    skipgram_gradients,
    skipgram_loss,
)
from companion.foundations.embeddings._model import Embeddings
from companion.foundations.embeddings._similarity import (
    AnalogyScore,
    Lexicon,
    PairScore,
    analogy,
    cosine_gradient,
    cosine_similarity,
    evaluate_analogies,
    evaluate_word_pairs,
    nearest,
    spearman,
)
from companion.foundations.embeddings._word2vec import train_cbow, train_sgns

__all__ = [
    "AnalogyScore",
    "Corpus",
    "Embeddings",
    "FastTextEmbeddings",
    "Lexicon",
    "PairScore",
    "Schedule",
    "Subwords",
    "Vocabulary",
    "analogy",
    "block_gradients",
    "block_loss",
    "cbow_gradients",
    "cbow_loss",
    "cbow_mean",
    "character_ngrams",
    "cooccurrence",
    "corpus",
    "cosine_gradient",
    "cosine_similarity",
    "embed",
    "embed_gradient",
    "encode",
    "evaluate_analogies",
    "evaluate_word_pairs",
    "expected_sgns_loss",
    "fnv1a",
    "glove_gradients",
    "glove_loss",
    "glove_weight",
    "hierarchical_softmax_loss",
    "huffman_codes",
    "keep_probability",
    "nearest",
    "noise_distribution",
    "pmi",
    "ppmi",
    "ppmi_svd",
    "sgns_gradients",
    "sgns_loss",
    "sgns_optimum",
    "skipgram_gradients",
    "skipgram_loss",
    "spearman",
    "subsample",
    "subword_vectors",
    "subwords",
    "tokenize",
    "train_cbow",
    "train_fasttext",
    "train_glove",
    "train_sgns",
    "truncated_svd",
    "vocabulary",
]
