"""Every public function that takes a generator: it alone decides, for every draw.

An entry calls the function and names what is drawn, choice by choice. A function without an entry
fails, and so does an entry without a function.
"""

import copy
import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from companion.data import WeatTest, WordGroup, WordVectors
from companion.efficiency.sparsity import HardConcrete
from companion.foundations.embeddings import Schedule, corpus
from companion.foundations.embeddings import vocabulary as count_words
from companion.foundations.language_models import NPLMConfig
from companion.generation.control import TokenIndex, Vocabulary
from companion.generation.decoding import PromptLookup, Speculative
from companion.models import History, generate
from companion.pretraining.denoising import Tokens
from companion.pretraining.masked import sentence_boundaries
from companion.transformer.block import Decoder, TransformerConfig
from companion.transformer.multi_head import MultiHeadAttention
from companion.trust.fairness import Acceptance, Cells, DerivedPredictor
from companion.trust.interpretability import SparseAutoencoder, Translator

from .public import callables, numbers, parameters, plain

G = torch.Generator
FUNCTIONS = callables()
RANDOM = sorted(
    name
    for name, function in FUNCTIONS.items()
    if any("Generator" in a and "Mapping" not in a for a in parameters(function).values())
)
# Where shapes are checked, the checker itself draws which entries it looks at, by random.
CHECKED = hasattr(FUNCTIONS["dropout_mask"], "__wrapped__")
# Without what a function draws beyond doubt these would be equal by chance about never.
SEEDS = range(8)
CONFIG = TransformerConfig(vocab=11, dim=12, layers=1, heads=3, ff_dim=13, context=17)
WORDS = [["to", "be", "or", "not", "to", "be", "that", "is", "the", "question"] * 7]
ROWS = Tokens(torch.arange(100, 138).view(2, 19), torch.ones(2, 19, dtype=torch.bool))
PLACES = sentence_boundaries([[[10 * d + s] * 2 for s in range(5)] for d in range(1, 5)], half=6)


def fixed(make: Callable[[], nn.Module]) -> Callable[[], Any]:
    """Copies of one module, whose making moves no state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = make()
    return lambda: copy.deepcopy(made)


PAIR_SCORES = numbers(23, 23)


def enumerate_names(tensors: Any) -> Any:
    """Parameters by their places."""
    return ((f"weights {k}", tensor) for k, tensor in enumerate(tensors))


a_decoder = fixed(lambda: Decoder(CONFIG).eval())
an_attention = fixed(lambda: MultiHeadAttention(12, heads=3))
a_gate = fixed(lambda: HardConcrete(7))
a_line = fixed(lambda: nn.Linear(7, 5))
an_autoencoder = fixed(lambda: SparseAutoencoder(5, 7, generator=G().manual_seed(0)))
TABLES = {shape: numbers(*shape) for shape in ((3, 5), (5, 7), (11, 3), (23, 5), (3, 64), (17, 17))}


def changed(add: Callable[[nn.Module], object]) -> Callable[[], Any]:
    def make() -> Any:
        model = a_decoder()
        add(model)
        return model

    return make


def vars_of(module: nn.Module) -> dict[str, Any]:
    """Its parameters, each a choice of its own."""
    return {name: p.detach() for name, p in module.named_parameters()}


def corrupted(made: Any, ids: Tensor) -> dict[str, Any]:
    """Which places, what becomes of them, and which random tokens."""
    chosen = made.chosen
    return {
        "places": chosen,
        "kinds": torch.where(chosen, (made.ids == 0).long() - (made.ids == ids).long(), 7),
        "tokens": made.ids[chosen & (made.ids != 0) & (made.ids != ids)],
    }


def trained(**schedule: Any) -> Schedule:
    return Schedule(epochs=1, window=2, block=4, shared=8, blocks=2, **schedule)


def infilled(f: Any, g: G) -> dict[str, Any]:
    made = f(ROWS, mask_id=0, ratio=0.5, generator=g)
    masks = (made.ids == 0) & made.real
    kept = [row[real & ~mask] for row, real, mask in zip(*made, masks, strict=True)]
    return {"places": masks, "lengths": [int(masks.sum()), *kept]}


def speculated(pick: Any, g: G) -> Tensor:
    fast = Speculative(a_decoder(), PromptLookup())
    return generate(fast, SHORT, tokens=7, pick=pick(fast, generator=g))


def sampled_exactly(f: Any, g: G) -> Tensor:
    words = Vocabulary([b"", *[bytes([97 + k]) for k in range(10)]])
    index = TokenIndex.from_regex("[a-j]{1,3}", words, stop=[0])
    made = f(a_decoder(), SHORT[:1], index, tokens=4, count=7, stop=[0], generator=g)
    texts: Tensor = made.ids
    return texts


def quadratic(parameter: Tensor) -> Callable[[], Tensor]:
    return lambda: (torch.tensor([1.0, 3.0, 2.0]) * parameter**2).sum() / 2


def spectrum(f: Any, g: G) -> dict[str, Any]:
    x = torch.ones(3, requires_grad=True)
    return {"start": f(quadratic(x), [x], k=1, iterations=1, generator=g)}


VOCABULARY = count_words(WORDS[0], min_count=1)
COUNTS = numbers(len(VOCABULARY), len(VOCABULARY)).abs().to_sparse()
NOTHING = History(torch.zeros(23, 0).long(), 0, None, torch.zeros(23, dtype=torch.bool))
IDS = torch.arange(20, 96).view(4, 19)
SHORT = torch.arange(15).view(5, 3) % 11
SYMMETRIC = (TABLES[17, 17] + TABLES[17, 17].T).abs()

TABLE = Cells(*torch.tensor([[60, 50], [10, 20], [20, 30], [30, 20]]))
HALF = torch.tensor([[0.5]]).double()
COIN = DerivedPredictor(
    levels=torch.zeros(1).double(),
    best=Acceptance(accept=HALF, gain=0.0, tpr=HALF[0], fpr=HALF[0], selection=HALF[0]),
)

#: For each function what it draws, as a table of choices that do not depend on one another.
FACTS = torch.tensor([[0, 1, 2], [3, 0, 8]])


MANY_PIXELS = torch.rand(61, 7, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
FIRST = torch.zeros(61).long()


def apart(x: Tensor) -> Tensor:
    """Logits that are the numbers themselves."""
    return x


def answers(offset: Tensor) -> Tensor:
    """Log-probabilities of a bent model."""
    return torch.sin(3 * (TABLES[5, 7] + offset)).cumsum(1).log_softmax(-1)


def named(module: nn.Module, *names: str) -> dict[str, Any]:
    """Parameters of a module by their names."""
    return {name: getattr(module, name) for name in names}


def tables(module: nn.Module) -> dict[str, Any]:
    """The two tables of a model of facts."""
    return named(module, "entity", "relation")


#: More words than partitions are counted of.
FIFTY = WordVectors([f"w{i}" for i in range(56)], numbers(56, 5))
ENDS = (0, 25, 50, 53, 56)
GROUPS = [WordGroup("", tuple(FIFTY.words[a:b])) for a, b in pairwise(ENDS)]
SIDES = [numbers(23, 5, seed=k) for k in range(4)]
CLOUD = numbers(29, 3)
TEST = WeatTest(*GROUPS, reference="", participants="", effect_size=None)

CASES: dict[str, Callable[[Any, G], dict[str, Any]]] = {
    "SparseAutoencoder": lambda f, g: {"directions": f(5, 7, generator=g).decoder.detach()},
    "control_labels": lambda f, g: {
        "labels": f(torch.arange(29), torch.arange(29) % 7, generator=g),
    },
    "random_erasure": lambda f, g: {
        "orders": f(
            lambda keep: keep.double() @ torch.arange(1, 12).double(),
            11,
            draws=5,
            ratios=(0.4,),
            generator=g,
        ).comprehensiveness
    },
    "sampled_shapley": lambda f, g: {
        "orders": f(
            lambda s: (s.double() @ torch.arange(1, 8).double()).square(),
            7,
            orders=3,
            generator=g,
        ).values
    },
    "train_autoencoder": lambda f, g: {
        "batches": f(
            an_autoencoder(),
            TABLES[23, 5].float(),
            steps=2,
            batch_size=3,
            generator=g,
        )
    },
    "tune_translator": lambda f, g: {
        "batches": f(
            Translator(12),
            a_decoder(),
            TABLES[11, 3].float().repeat(1, 4),
            TABLES[11, 3].float().repeat(1, 4) + 1,
            steps=2,
            batch_size=3,
            generator=g,
        )
    },
    "certify": lambda f, g: {
        "votes": f(apart, TABLES[5, 7], sigma=2.0, samples=20, generator=g).lower
    },
    "eda": lambda f, g: {
        f"copy {k}": words
        for k, words in enumerate(
            f([*"abcdefghij"], {c: [*"xyz"] for c in "abcdefghij"}, ratio=0.3, generator=g)
        )
    },
    "freelb_start": lambda f, g: {
        "offset": f(torch.ones(3, 5, dtype=torch.bool), dim=7, eps=1.0, generator=g)
    },
    "masking_audit": lambda f, g: {
        "noise": f(
            apart, MANY_PIXELS, MANY_PIXELS.argmax(1), eps=0.3, steps=[1], queries=1, generator=g
        ).accuracies["noise"]
    },
    "mixup": lambda f, g: {
        "weight": f(TABLES[23, 5], torch.arange(23), alpha=1.0, generator=g).weight,
        "partners": f(TABLES[23, 5], torch.arange(23), alpha=1.0, generator=g).second,
    },
    "pgd": lambda f, g: {
        "start": f(apart, MANY_PIXELS, FIRST, eps=0.3, step=1e-9, steps=1, bounds=None, generator=g)
    },
    "random_in_ball": lambda f, g: {
        str(norm): f(TABLES[5, 7], eps=1.0, norm=norm, generator=g) for norm in (1, 2, math.inf)
    },
    "random_search": lambda f, g: {
        "corner": f(apart, MANY_PIXELS, FIRST, eps=0.3, queries=1, bounds=None, generator=g),
        "turns": f(apart, MANY_PIXELS, FIRST, eps=0.3, queries=5, bounds=None, generator=g),
    },
    "sine_tasks": lambda f, g: f(5, generator=g)._asdict(),
    "smooth_votes": lambda f, g: {
        "votes": f(apart, TABLES[5, 7], sigma=2.0, samples=50, generator=g)
    },
    "typos": lambda f, g: {"text": f("wonderful things and others " * 5, ratio=0.5, generator=g)},
    "vat_direction": lambda f, g: {"start": f(answers, TABLES[5, 7], xi=1.0, generator=g)},
    "vat_loss": lambda f, g: {"start": f(answers, TABLES[5, 7], eps=1.0, xi=1.0, generator=g)},
    "bootstrap": lambda f, g: {
        "tables": f(TABLE, lambda c: c.tp.double(), resamples=17, generator=g).resamples
    },
    "paired_bootstrap": lambda f, g: {
        "items": [float(v) for v in f(*SIDES[0][:13].T[:2], resamples=97, generator=g)[3:5]]
    },
    "paired_permutation": lambda f, g: {
        "signs": f(*TABLES[23, 5].T[:2], draws=97, generator=g).p_value
    },
    "rank_intervals": lambda f, g: {
        "games": f(
            torch.tensor([[0, 1], [1, 2], [2, 0]] * 7),
            (torch.arange(21) % 4 < 2).double(),
            players=3,
            resamples=11,
            generator=g,
        ).resamples
    },
    "permutation_test": lambda f, g: {
        "partitions": f(SIDES[0][:, 0], SIDES[1][:, 0], draws=97, generator=g).p_value
    },
    "trust.debiasing.weat": lambda f, g: {
        "partitions": f(*SIDES, draws=97, generator=g).test.p_value
    },
    "word_weat": lambda f, g: {
        "partitions": f(FIFTY, TEST, draws=97, generator=g).result.test.p_value
    },
    "two_means": lambda f, g: {"clusters": f(CLOUD, restarts=1, steps=2, generator=g)},
    "null_gaps": lambda f, g: {"gaps": f(torch.tensor([50, 70]), 0.4, draws=17, generator=g)},
    "DerivedPredictor.predict": lambda f, g: {
        "decisions": f(COIN, torch.zeros(29).double(), torch.zeros(29).long(), generator=g)
    },
    "DualEncoder": lambda f, g: named(f(5, 3, dim=4, generator=g), "first", "second"),
    "TensorFusion": lambda f, g: named(f(3, 2, out=4, generator=g), "weight"),
    "LowRankFusion": lambda f, g: dict(
        enumerate_names(f([3, 2], rank=2, out=4, generator=g).weights)
    ),
    "itm_negatives": lambda f, g: {
        "hard": f(PAIR_SCORES, generator=g),
        "easy": f(PAIR_SCORES, generator=g, hard=False),
    },
    "modality_mask": lambda f, g: {
        "shown": f(37, 3, p=0.3, generator=g),
        "back": f(37, 3, p=1.0, generator=g),
    },
    "ComplEx": lambda f, g: tables(f(5, 3, dim=4, generator=g)),
    "DistMult": lambda f, g: tables(f(5, 3, dim=4, generator=g)),
    "GAT": lambda f, g: named(f(3, 2, heads=2, generator=g), "weight", "source", "target"),
    "GCN": lambda f, g: named(f(3, 2, generator=g), "weight"),
    "LinkModel": lambda f, g: tables(f(5, 3, dim=4, generator=g)),
    "RGCN": lambda f, g: named(
        f(3, 2, relations=3, bases=2, generator=g), "mixture", "weight", "root"
    ),
    "RotatE": lambda f, g: tables(f(5, 3, dim=4, generator=g)),
    "TransE": lambda f, g: tables(f(5, 3, dim=4, generator=g)),
    "corrupt_facts": lambda f, g: {
        "sides": (f(FACTS, entities=9, count=23, generator=g) != FACTS[:, None])[..., 0],
        "entities": f(FACTS, entities=9, count=23, generator=g).amax(-1),
    },
    "DraftModel": lambda f, g: {"tokens": f(a_decoder(), generator=g).propose(SHORT, None, 4).ids},
    "Speculative.pick": lambda f, g: {"tokens": speculated(f, g)},
    "dsir_resample": lambda f, g: {"texts": f(TABLES[23, 5][:, 0], 11, generator=g)},
    "flip_labels": lambda f, g: {
        "labels": f(torch.arange(5).repeat(9), torch.full((5, 5), 0.2), generator=g)
    },
    "gumbel_top_k": lambda f, g: {"classes": f(TABLES[23, 5], 2, generator=g)},
    "rejection_accept": lambda f, g: {"kept": f(-TABLES[17, 17].abs(), 0.0, generator=g)},
    "speculative_draw": lambda f, g: {
        "tokens": f(TABLES[23, 5], torch.full((23,), 2), -3 * TABLES[23, 5], generator=g).ids,
        "beside fixed ones": f(TABLES[17, 17], torch.zeros(17).long(), None, generator=g).ids,
    },
    "Adapter": lambda f, g: {"weights": f(7, 5, generator=g)},
    "Dropout": lambda f, g: {"mask": f(0.5, generator=g)(torch.ones(3, 17))},
    "BlockLowRankLinear": lambda f, g: vars_of(f(6, 9, blocks=3, rank=2, generator=g)),
    "HardConcrete.forward": lambda f, g: {"gates": f(a_gate(), generator=g).detach()},
    "MonarchLinear": lambda f, g: vars_of(f(9, generator=g)),
    "RigL": lambda f, g: (
        f({"w": nn.Parameter(TABLES[17, 17].clone())}, sparsity=0.6, generator=g).masks
    ),
    "LSHAttention": lambda f, g: f(12, 3, rounds=2, n_buckets=4, chunk=3, generator=g).state_dict(),
    "Performer": lambda f, g: f(12, 3, features=5, generator=g).state_dict(),
    "bigbird_layout": lambda f, g: {"blocks": f(29, 1, 1, 5, generator=g)},
    "gaussian_frequencies": lambda f, g: {
        "orthogonal": f(7, 5, generator=g),
        "independent": f(7, 5, orthogonal=False, generator=g),
    },
    "lsh_rotations": lambda f, g: {"rotations": f(5, 4, 3, generator=g)},
    "LoRALinear": lambda f, g: {"down": f(a_line(), rank=2, alpha=1.0, generator=g)},
    "NPLM": lambda f, g: {
        name: weight
        for name, weight in f(NPLMConfig(vocab_size=7), generator=g).state_dict().items()
        if weight.any()  # biases begin at 0
    },
    "PrefixTuning": lambda f, g: {
        name: value
        for name, value in f(an_attention(), length=3, generator=g).named_parameters()
        if value.requires_grad
    },
    "PromptTuning": lambda f, g: {"rows": f(a_decoder(), length=3, generator=g)},
    "WidthMLP": lambda f, g: {
        name: weight
        for name, weight in f(3, 7, 5, base_width=7, generator=g).state_dict().items()
        if weight.any()
    },
    "add_adapters": lambda f, g: {"weights": changed(lambda m: f(m, width=5, generator=g))()},
    "add_lora": lambda f, g: {
        "weights": changed(lambda m: f(m, targets=["query"], rank=2, alpha=1.0, generator=g))()
    },
    "add_prefix": lambda f, g: {"weights": changed(lambda m: f(m, length=3, generator=g))()},
    "attention": lambda f, g: {"mask": f(*[TABLES[17, 17]] * 3, dropout=0.5, generator=g)},
    "dense_attention": lambda f, g: {"mask": f(*[TABLES[17, 17]] * 3, dropout=0.5, generator=g)[0]},
    "corrupt": lambda f, g: corrupted(
        f(IDS, vocab=97, mask_id=0, ratio=0.5, split=(0.4, 0.4, 0.2), generator=g), IDS
    ),
    "document_rotation": lambda f, g: {"start": f(ROWS, generator=g)},
    "draw": lambda f, g: {"classes": f(TABLES[23, 5], generator=g)},
    "exact_sample": lambda f, g: {"texts": sampled_exactly(f, g)},
    "dropout": lambda f, g: {"mask": f(torch.ones(3, 17), p=0.5, generator=g)},
    "dropout_mask": lambda f, g: {"mask": f((3, 17), p=0.5, generator=g)},
    "stochastic_round": lambda f, g: {"rounded": f(torch.full((3, 17), 0.5), generator=g)},
    "expectation": lambda f, g: {
        "samples": f(
            "eq:mean",
            lambda n, source: torch.randn(n, generator=source) + 3,
            3.0,
            n=20_000,
            generator=g,
            mutants={"none": 0.0},
        )
    },
    "fill_in_the_middle": lambda f, g: {"cuts": f(ROWS, suffix=1, prefix=2, middle=3, generator=g)},
    "fit_scaling_law": lambda f, g: {
        "resamples": f(
            torch.tensor([1e6, 3e6, 1e7, 3e7, 1e8, 3e8]),
            torch.tensor([9e8, 2e8, 8e9, 1e9, 7e9, 5e10]),
            torch.tensor([4.1, 4.0, 3.2, 3.3, 2.9, 2.5]),
            bootstrap=2,
            starts=1,
            generator=g,
        ).draws
    },
    "generic": lambda f, g: {"numbers": f(3, 5, generator=g)},
    "glm_batch": lambda f, g: {
        "order": f(ROWS, ROWS.ids % 3 == 0, mask_id=1, start=2, end=3, generator=g).ids
    },
    "gradcheck": lambda f, g: {"direction": f(lambda x: x.tanh(), TABLES[3, 5], generator=g)},
    "hessian_topk": spectrum,
    "infill_lengths": lambda f, g: {"lengths": f(torch.tensor([19, 13]), largest=19, generator=g)},
    "init_weights": lambda f, g: dict(enumerate(f([3, 5, 7], rule="he", generator=g))),
    "initialize": lambda f, g: {"weights": f(CONFIG, generator=g)},
    "initialize_": lambda f, g: {"weights": f(a_decoder(), generator=g)},
    "masked_batch": lambda f, g: {"places": f(ROWS, mask_id=0, ratio=0.4, generator=g).predict},
    "mixture_of_denoisers": lambda f, g: dict(
        zip(("spans", "drawn"), f(ROWS, sentinel=99, generator=g), strict=True)
    ),
    "next_sentence_pairs": lambda f, g: (
        lambda made: {
            "labels": made.labels,
            "partners": made.ids[made.labels == 1].sum(1),
        }
    )(f(PLACES, torch.arange(len(PLACES)), cls_id=1, sep_id=2, pad_id=0, generator=g)),
    "orthogonal": lambda f, g: {"matrix": f(5, 3, generator=g)},
    "ppmi_svd": lambda f, g: {
        # Signs of singular vectors follow the random start.
        "start": f(VOCABULARY, COUNTS, dim=3, generator=g).vectors
    },
    "projector": lambda f, g: {"weights": f([7, 5, 3], generator=g)},
    "rand": lambda f, g: {"numbers": f(3, generator=g)},
    "randint": lambda f, g: {"numbers": f(0, 97, (3,), generator=g)},
    "randn": lambda f, g: {"numbers": f(3, generator=g)},
    "random_affine": lambda f, g: {
        what: f(TABLES[3, 64].abs(), generator=g, **{**still, what: 0.2})
        for still in [{"turn": 0.0, "stretch": 0.0, "shift": 0.0, "noise": 0.0}]
        for what in still
    },
    "random_frequencies": lambda f, g: dict(
        zip(("frequencies", "phases"), f(3, 5, bandwidth=1.0, generator=g), strict=True)
    ),
    "random_ranks": lambda f, g: {"order": f(ROWS.real, generator=g)[0]},
    "random_spans": lambda f, g: {"spans": f(ROWS.real, ratio=0.4, mean=2.0, generator=g)},
    "sample": lambda f, g: {"picks": f(generator=g, temperature=5.0)(TABLES[23, 5], NOTHING)},
    "scheduled_sampling": lambda f, g: {
        "draws": f(a_decoder(), IDS[:, :9] % 11, ratio=1.0, generator=g),
        "places": f(a_decoder(), IDS[:, :9] % 11, ratio=0.5, temperature=0.0, generator=g),
    },
    "sentence_order_pairs": lambda f, g: {
        "swaps": f(
            PLACES, torch.arange(len(PLACES)), cls_id=1, sep_id=2, pad_id=0, generator=g
        ).labels
    },
    "sentence_permutation": lambda f, g: {"order": f(ROWS, stops=[103, 107, 112], generator=g)},
    "signal_stats": lambda f, g: {
        "gradient": f([TABLES[3, 5], TABLES[5, 7]], TABLES[11, 3], generator=g)
    },
    "span_corrupt": lambda f, g: corrupted(
        f(IDS, vocab=97, mask_id=0, ratio=0.5, split=(0.4, 0.4, 0.2), generator=g), IDS
    ),
    "span_corruption": lambda f, g: {
        "spans": f(ROWS, sentinel=99, ratio=0.4, mean=2.0, generator=g)
    },
    "subsample": lambda f, g: {"kept": f(IDS.flatten() % 7, torch.full((7,), 0.5), generator=g)},
    "text_infilling": infilled,
    "token_deletion": lambda f, g: {"places": f(ROWS, ratio=0.4, generator=g)},
    "token_masking": lambda f, g: {"places": f(ROWS, mask_id=0, ratio=0.4, generator=g)},
    "train_cbow": lambda f, g: {
        "tables": f(corpus(WORDS, min_count=1), dim=3, schedule=trained(), generator=g)
    },
    "train_fasttext": lambda f, g: {
        "tables": f(corpus(WORDS, min_count=1), dim=3, buckets=31, schedule=trained(), generator=g)
    },
    "train_glove": lambda f, g: {
        "tables": f(VOCABULARY, COUNTS, dim=3, epochs=2, batch_size=7, generator=g)
    },
    "train_sgns": lambda f, g: {
        "tables": f(corpus(WORDS, min_count=1), dim=3, schedule=trained(), generator=g)
    },
    "truncated_svd": lambda f, g: {"start": f(SYMMETRIC, 2, oversampling=0, rounds=0, generator=g)},
    "whole_word_corrupt": lambda f, g: corrupted(
        f(
            IDS,
            torch.arange(19).expand(4, 19) // 2,
            vocab=97,
            mask_id=0,
            ratio=0.5,
            split=(0.4, 0.4, 0.2),
            generator=g,
        ),
        IDS,
    ),
    "addition": lambda f, g: {"sum": f(digits=5, generator=g).question},
    "countdown": lambda f, g: {"numbers": f(numbers=4, generator=g).question},
    "graph_path": lambda f, g: {"graph": f(nodes=7, edges=9, generator=g).question},
    "mcts": lambda f, g: {
        "games": list(
            f(
                1,
                lambda n: [2 * n, 2 * n + 1] if n < 64 else [],
                lambda n: math.sin(n),
                simulations=40,
                generator=g,
            ).visits.values()
        )
    },
    "parity": lambda f, g: {"bits": f(bits=19, generator=g).question},
    "syllogism": lambda f, g: {"sentences": f(generator=g).question},
    "write_samples": lambda f, g: {
        "answers": f(
            a_decoder(),
            [IDS[0, :3] % 11],
            group=3,
            tokens=4,
            stop=[0],
            temperature=20.0,
            generator=g,
        ).answers()
    },
}

#: Functions of which what they draw does not show in the result, and why.
HIDDEN = {
    "gradcheck": "the largest error over a random direction, of the size of rounding",
}
#: Draws from the global generator that are put back, and why.
RESTORED = {
    "initialize": "PyTorch's modules draw as they are made; the state is restored",
}


class Draws(TorchDispatchMode):
    """For every operation that draws numbers, whether one generator moved by it, and it alone."""

    def __init__(self, generator: G) -> None:
        super().__init__()
        self.generator = generator
        self.moved: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        before, shared = self.generator.get_state(), torch.random.get_rng_state()
        made = func(*args, **(kwargs or {}))
        moved = not torch.equal(before, self.generator.get_state())
        elsewhere = not torch.equal(shared, torch.random.get_rng_state())
        other = any(isinstance(a, G) for a in (*args, *(kwargs or {}).values())) and not moved
        # Attention carries the tag, but draws only where it drops out.
        if moved or elsewhere or other:
            self.moved.append((str(func), moved and not elsewhere))
        return made


def _numpy_state() -> Any:
    return np.random.get_state()[1].tolist()  # noqa: NPY002 (the state that must not move)


def seeded(seed: int) -> G:
    return torch.Generator().manual_seed(seed)


def run(name: str, g: G) -> dict[str, Any]:
    made = CASES[name](FUNCTIONS[name], g)
    return {choice: plain(value) for choice, value in made.items()}


def test_every_random_function_has_an_entry_and_every_entry_a_function() -> None:
    assert set(CASES) ^ set(RANDOM) == set()


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_seed_gives_the_same_result_and_the_global_state_stays(name: str) -> None:
    first = run(name, seeded(3))
    before = torch.random.get_rng_state(), random.getstate(), _numpy_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)  # what stands in the global generator must not matter
        random.seed(99)
        other = torch.random.get_rng_state()
        again = run(name, seeded(3))
        assert torch.equal(torch.random.get_rng_state(), other)
    random.setstate(before[1])
    run(name, seeded(4))
    assert first == again
    assert torch.equal(torch.random.get_rng_state(), before[0])
    if not CHECKED:
        assert random.getstate() == before[1]
    assert _numpy_state() == before[2]


@pytest.mark.parametrize("name", [n for n in RANDOM if n not in HIDDEN])
def test_each_random_choice_changes_with_the_seed(name: str) -> None:
    runs = [run(name, seeded(seed)) for seed in SEEDS]
    for choice in runs[0]:
        assert len({str(made[choice]) for made in runs}) > 1, choice


@pytest.mark.parametrize("name", [n for n in RANDOM if n not in HIDDEN])
def test_a_second_call_goes_on_where_the_first_one_stopped(name: str) -> None:
    g = seeded(3)
    results = [run(name, g) for _ in SEEDS]
    assert any(made != results[0] for made in results[1:])


@pytest.mark.parametrize("name", [n for n in RANDOM if n not in RESTORED])
def test_every_draw_takes_the_generator_that_was_given(name: str) -> None:
    g = seeded(3)
    with Draws(g) as draws:
        CASES[name](FUNCTIONS[name], g)
    assert draws.moved
    assert [draw for draw, moved in draws.moved if not moved] == []
