"""Pruning of whole models, and the stored run that does it to SmolLM2."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from companion import data
from companion.efficiency.sparsity import prune_, sparsegpt
from companion.transformer.block import Decoder, Rope, TransformerConfig

METHODS = ("magnitude", "wanda", "sparsegpt")
SETTINGS = ((0.3, None), (0.5, None), (0.5, (2, 4)))
# A Llama as SmolLM2 is one: several maps in one matrix, gated, with fewer heads of keys.
SHAPE = TransformerConfig(
    vocab=131,
    dim=12,
    layers=3,
    heads=3,
    kv_heads=1,
    ff_dim=20,
    context=64,
    norm="rms",
    activation="swiglu",
    positions=Rope(base=100.0),
    attention_bias=False,
    ff_bias=False,
)


def small(dtype: torch.dtype = torch.float64) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(SHAPE).to(dtype).eval().requires_grad_(False)


def rows() -> Tensor:
    return torch.randint(0, 131, (6, 11), generator=torch.Generator().manual_seed(1))


def read_by(model: Decoder, path: str, ids: Tensor) -> Tensor:
    """What a layer is called with, one row for each token."""
    held: list[Tensor] = []
    layer = model.get_submodule(path)
    hook = layer.register_forward_pre_hook(lambda _, inputs: held.append(inputs[0]))
    model(ids)
    hook.remove()
    return held[0].flatten(0, 1)


def expected(
    method: str, W: Tensor, X: Tensor, share: float, pattern: tuple[int, int] | None
) -> Tensor:
    """The pruned matrix by sorting in plain Python; SparseGPT by its own function."""
    if method == "sparsegpt":
        return sparsegpt(W, 2 * X.T @ X, sparsity=share, pattern=pattern)[0]
    scores = W.abs() if method == "magnitude" else W.abs() * X.square().sum(0).sqrt()
    d_out, d_in = W.shape
    places = [(i, j) for i in range(d_out) for j in range(d_in)]
    if pattern is not None:
        groups: dict[Any, list[Any]] = {}
        for i, j in places:
            groups.setdefault((i, j // pattern[1]), []).append((i, j))
        share = 1 - pattern[0] / pattern[1]
    elif method == "magnitude":
        groups = {0: places}
    else:
        groups = {row: [(row, j) for j in range(d_in)] for row in range(d_out)}
    new = W.clone()
    for group in groups.values():
        least = sorted(group, key=lambda place: float(scores[place]))
        for place in least[: round(share * len(group))]:
            new[place] = 0.0
    return new


@pytest.mark.parametrize(("share", "pattern"), SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_each_layer_of_a_model_is_pruned_as_it_would_be_alone_behind_pruned_blocks(
    method: Any, share: float, pattern: tuple[int, int] | None
) -> None:
    model, whole, ids = small(), small(), rows()
    masks = prune_(model, ids.split(4), method=method, sparsity=share, pattern=pattern)
    assert torch.equal(ids, rows())
    layers = ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")
    assert set(masks) == {f"blocks.{n}.{layer}" for n in range(3) for layer in layers}
    for number in range(3):
        mixed = copy.deepcopy(whole)  # the blocks before this one are pruned, this one is not yet
        for before in range(number):
            mixed.blocks[before] = copy.deepcopy(model.blocks[before])
        for layer in layers:
            path = f"blocks.{number}.{layer}"
            W = whole.get_parameter(f"{path}.weight")
            new = expected(method, W, read_by(mixed, path, ids), share, pattern)
            made = model.get_parameter(f"{path}.weight")
            # Sums over 66 rows, in another order.
            torch.testing.assert_close(made, new, rtol=1e-8, atol=1e-10)
            assert torch.equal(made != 0, masks[path])


@pytest.mark.parametrize("method", METHODS)
def test_pruning_a_model_leaves_all_else_as_it_was(method: Any) -> None:
    model, whole, ids = small(), small(), rows()
    masks = prune_(model, ids.split(4), method=method, sparsity=0.5)
    for name, parameter in model.named_parameters():
        path = name.removesuffix(".weight")
        before = whole.get_parameter(name)
        if path not in masks:
            assert torch.equal(parameter, before)
        elif method != "sparsegpt":
            assert torch.equal(parameter[masks[path]], before[masks[path]])
        else:  # weights that stay adapt
            assert not torch.equal(parameter[masks[path]], before[masks[path]])


def test_wanda_and_sparsegpt_see_the_pruned_blocks_and_magnitudes_see_nothing() -> None:
    """The control of the test above: with the whole model's inputs, later blocks differ."""
    whole, ids = small(), rows()
    path = "blocks.2.feed_forward.down"
    W = whole.get_parameter(f"{path}.weight")
    X = read_by(whole, path, ids)
    for method in METHODS:
        model = small()
        prune_(model, [ids], method=method, sparsity=0.5)  # type: ignore[arg-type]
        made = model.get_parameter(f"{path}.weight")
        same = torch.allclose(made, expected(method, W, X, 0.5, None))
        assert same == (method == "magnitude")


# ------------------------------------------------------------------ the stored run


class Letters:
    """Bytes as tokens, as far as a vocabulary of 131 goes."""

    def encode(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        return SimpleNamespace(ids=[1 + byte % 130 for byte in text[:400].encode()])


def test_the_script_of_the_run_runs(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripts.load("sparsity_smollm2")
    dense = small(torch.float32)
    lm = SimpleNamespace(model=dense, tokenizer=Letters(), start=0)
    before = copy.deepcopy(dense.state_dict())
    monkeypatch.setattr(script, "smollm2", lambda: lm)
    threads = torch.get_num_threads()
    sizes = ["--calibrate", "5", "--test", "3", "--each", "2", "--width", "16"]
    try:
        results = scripts.run("sparsity_smollm2", *sizes).results
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    shown, news = script.articles(lm, calibrate=5, test=3, width=16)
    assert shown.shape == (5, 16)
    assert news.shape == (3, 16)
    assert not {tuple(row) for row in shown.tolist()} & {tuple(row) for row in news.tolist()}
    assert (torch.cat([shown, news])[:, 0] == 0).all()

    # One of the models again, by hand.
    model = small(torch.float32)
    prune_(model, [shown], method="wanda", pattern=(2, 4))
    logits = model(news[:, :-1]).log_softmax(-1)
    nats = F.nll_loss(logits.flatten(0, 1), news[:, 1:].flatten(), reduction="none")
    told = next(r for r in results["runs"] if r["method"] == "wanda" and r["pattern"])
    assert told["news"] == pytest.approx(nats.view(3, 15).mean(1).tolist(), abs=1e-3)
    assert len(told["plays"]) == results["plays"] == 19

    linear = 3 * (20 * 12 + 12 * 12 + 40 * 12 + 20 * 12)
    assert results["pruned"] == linear
    seen = [(r["method"], r["share"], r["pattern"], r["calibration"]) for r in results["runs"]]
    assert len(seen) == len({str(one) for one in seen}) == 14
    for one in results["runs"]:
        rounding = 0.02 if one["pattern"] is None else 0  # rows of 12 and 20 weights
        assert abs(one["zeros"] / linear - one["share"]) <= rounding + 0.05 * (one["share"] == 0.3)
        assert (one["calibration"] is None) == (one["method"] == "magnitude")


def test_plays_that_calibrate_are_not_in_the_test(scripts: Any) -> None:
    script = scripts.load("sparsity_smollm2")
    lm = SimpleNamespace(tokenizer=Letters(), start=0)
    works = list(data.shakespeare_plays().values())
    test = script.passages(lm, works[1::2], each=2, width=16)
    learn = script.passages(lm, works[::2], each=2, width=16)
    assert len(test) == len(learn) == 38
    assert not {tuple(row) for row in test.tolist()} & {tuple(row) for row in learn.tolist()}
    lines = "\n".join(works[1::2])
    codes = [1 + byte % 130 for byte in lines.encode()]
    starts = {tuple(codes[i + 1 : i + 16]) for i, code in enumerate(codes) if code == 11}
    assert all(tuple(row[1:]) in starts for row in test.tolist())


def test_the_stored_run_is_what_the_chapter_says() -> None:
    run = data.stored_run("sparsity_smollm2")
    assert run.command == "python book/_runs/sparsity_smollm2.py"
    results = run.results
    assert results["cpu_seconds"] < 40 * 60
    nats: dict[tuple[str, str, str | None], dict[str, Tensor]] = {}
    for one in results["runs"]:
        assert len(one["news"]) == results["articles"] == 32
        assert len(one["plays"]) == results["plays"] == 19
        # Exact zeros: those asked for, to one weight in each row, and a few that were there before.
        extra = one["zeros"] - one["share"] * results["pruned"]
        assert -0.001 * results["pruned"] <= extra <= 0.001 * results["pruned"] + results["zeros"]
        zeros = "2:4" if one["pattern"] else str(one["share"])
        key = (zeros, one["method"], one["calibration"])
        nats[key] = {kind: torch.tensor(one[kind]).double() for kind in ("news", "plays")}
    for zeros in ("0.3", "0.5", "0.6", "2:4"):  # the order on news, of which the text speaks
        means = [
            nats[zeros, method, source]["news"].mean()
            for method, source in (("magnitude", None), ("wanda", "news"), ("sparsegpt", "news"))
        ]
        assert means == sorted(means, reverse=True)
    dense = {kind: torch.tensor(results["dense"][kind]).double() for kind in ("news", "plays")}
    rise = nats["0.5", "magnitude", None]["news"].mean() - dense["news"].mean()
    assert rise > torch.tensor(10.0).log()
    # Wanda and SparseGPT, shown news and shown plays: who is ahead where.
    for zeros, shown, kind, clear in (
        ("0.3", "news", "plays", False),
        ("0.5", "news", "news", True),
        ("0.5", "news", "plays", False),
        ("0.6", "news", "plays", False),
        ("2:4", "news", "plays", True),
        ("0.5", "plays", "plays", True),
    ):
        apart = nats[zeros, "wanda", shown][kind] - nats[zeros, "sparsegpt", shown][kind]
        error = apart.std() / len(apart) ** 0.5
        assert (apart.mean() > 2 * error) == clear
        assert apart.mean() > -2 * error
    for kind, sign in (("news", -1), ("plays", 1)):  # plays in place of news help plays only
        change = {
            method: nats["0.5", method, "news"][kind] - nats["0.5", method, "plays"][kind]
            for method in ("wanda", "sparsegpt")
        }
        assert sign * change["sparsegpt"].mean() > sign * change["wanda"].mean() > 0
