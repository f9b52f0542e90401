"""BERT with both heads computes what `transformers` computes, outputs, losses and gradients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from companion.core import generator
from companion.foundations.cross_entropy import IGNORE
from companion.models import load_pretrained
from companion.pretraining.masked import BertForPreTraining, corrupt
from companion.pretraining.masked._model import select_places
from companion.transformer.block import Learned, TransformerConfig, initialize_

VOCAB, DIM, N, BATCH = 53, 24, 11, 5

CONFIG = TransformerConfig(
    vocab=VOCAB,
    dim=DIM,
    layers=2,
    heads=3,
    ff_dim=31,
    context=19,
    norm_place="post",
    norm_eps=1e-12,
    positions=Learned(),
    embedding_norm=True,
    segments=2,
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load_bert(folder: Path, **options: Any) -> BertForPreTraining:
    heads = load_pretrained(folder, heads=True, **options).heads
    assert isinstance(heads, BertForPreTraining)
    return heads


def their_config(**changes: Any) -> Any:
    return transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=31,
        max_position_embeddings=19,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **changes,
    )


def spread(model: Any) -> Any:
    """Parameters away from their defaults, so that each of them counts."""
    g = generator(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g))
    return model


def pair_of(kind: Any, folder: Path, dtype: torch.dtype, **changes: Any) -> tuple[Any, Any]:
    """A model of theirs with random weights, and ours from the files that it saves."""
    theirs = spread(kind(their_config(**changes)))
    theirs.save_pretrained(folder)
    return theirs.to(dtype).eval(), load_bert(folder, dtype=dtype)


def batch_of(seed: int = 0) -> dict[str, Tensor]:
    g = generator(seed)
    ids = torch.randint(4, VOCAB, (BATCH, N), generator=g)
    real = torch.ones(BATCH, N, dtype=torch.bool)
    real[1, 8:], real[3, 5:] = False, False
    read = corrupt(ids, vocab=VOCAB, mask_id=3, ratio=0.4, generator=g)
    return {
        "ids": read.ids,
        "targets": read.targets.masked_fill(~real, IGNORE),
        "labels": torch.randint(0, 2, (BATCH,), generator=g),
        "real": real,
        "segments": (torch.arange(N) > 6).long().expand(BATCH, N),
    }


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
def test_logits_losses_and_gradients_equal_those_of_transformers(
    dtype: torch.dtype, close: float, act: str, tmp_path: Path
) -> None:
    theirs, ours = pair_of(transformers.BertForPreTraining, tmp_path, dtype, hidden_act=act)
    b = batch_of()
    expected = theirs(
        b["ids"],
        attention_mask=b["real"].long(),
        token_type_ids=b["segments"],
        labels=b["targets"],
        next_sentence_label=b["labels"],
    )
    made = ours(b["ids"], real=b["real"], segments=b["segments"])
    tolerance = {"rtol": close, "atol": close}
    torch.testing.assert_close(
        made.tokens[b["real"]], expected.prediction_logits[b["real"]], **tolerance
    )
    torch.testing.assert_close(made.pair, expected.seq_relationship_logits, **tolerance)
    for predictions in (None, 29):
        loss = ours.loss(**b, predictions=predictions)
        torch.testing.assert_close(loss.total, expected.loss, **tolerance)
        ours.zero_grad()
        loss.total.backward()
        theirs.zero_grad()
        expected.loss.backward(retain_graph=True)
        compare_gradients(ours, theirs, tolerance)


def compare_gradients(ours: Any, theirs: Any, tolerance: dict[str, float]) -> None:
    """Every gradient of ours stands beside theirs; none of either side is left over."""
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    mine = {name: p.grad for name, p in ours.named_parameters()}

    def same(name: str, *others: str) -> None:
        expected = torch.cat([gradients.pop(other) for other in others])
        torch.testing.assert_close(mine.pop(name), expected, **tolerance, msg=name)

    # The table is read by the embedding and by the head: its gradient is a sum.
    same("encoder.tokens.weight", "bert.embeddings.word_embeddings.weight")
    same("encoder.positions.weight", "bert.embeddings.position_embeddings.weight")
    same("encoder.segments.weight", "bert.embeddings.token_type_embeddings.weight")
    same("bias", "cls.predictions.bias")
    for part in ("weight", "bias"):
        same(f"encoder.embedding_norm.{part}", f"bert.embeddings.LayerNorm.{part}")
        same(f"transform.{part}", f"cls.predictions.transform.dense.{part}")
        same(f"transform_norm.{part}", f"cls.predictions.transform.LayerNorm.{part}")
        if ours.pair is not None:
            same(f"pooler.{part}", f"bert.pooler.dense.{part}")
            same(f"pair.{part}", f"cls.seq_relationship.{part}")
        for layer in range(2):
            a, b = f"encoder.blocks.{layer}", f"bert.encoder.layer.{layer}"
            qkv = [f"{b}.attention.self.{name}.{part}" for name in ("query", "key", "value")]
            same(f"{a}.attention.qkv.{part}", *qkv)
            same(f"{a}.attention.out.{part}", f"{b}.attention.output.dense.{part}")
            same(f"{a}.attention_norm.{part}", f"{b}.attention.output.LayerNorm.{part}")
            same(f"{a}.feed_forward.up.{part}", f"{b}.intermediate.dense.{part}")
            same(f"{a}.feed_forward.down.{part}", f"{b}.output.dense.{part}")
            same(f"{a}.feed_forward_norm.{part}", f"{b}.output.LayerNorm.{part}")
    assert (mine, gradients) == ({}, {})


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_model_without_the_second_head_equals_theirs(
    dtype: torch.dtype, close: float, tmp_path: Path
) -> None:
    theirs, ours = pair_of(transformers.BertForMaskedLM, tmp_path, dtype)
    assert ours.pair is None
    b = batch_of()
    del b["labels"]
    expected = theirs(
        b["ids"],
        attention_mask=b["real"].long(),
        token_type_ids=b["segments"],
        labels=b["targets"],
    )
    loss = ours.loss(**b)
    tolerance = {"rtol": close, "atol": close}
    torch.testing.assert_close(loss.total, expected.loss, **tolerance)
    assert torch.equal(loss.total, loss.masked)
    assert float(loss.pair.detach()) == 0
    loss.total.backward()
    expected.loss.backward()
    compare_gradients(ours, theirs, tolerance)
    assert ours(b["ids"]).pair is None
    with pytest.raises(ValueError, match="this model has no head for pairs"):
        ours.loss(**b, labels=torch.zeros(BATCH).long())


def test_a_loaded_model_is_in_evaluation_mode_and_keeps_the_table_once(tmp_path: Path) -> None:
    _, ours = pair_of(transformers.BertForPreTraining, tmp_path, torch.float32)
    assert not ours.training
    names = [name for name, value in ours.named_parameters() if value.shape == (VOCAB, DIM)]
    assert names == ["encoder.tokens.weight"]
    assert load_bert(tmp_path, dtype=torch.bfloat16).bias.dtype == torch.bfloat16


def changed_folder(folder: Path, change: Any) -> Path:
    spread(transformers.BertForPreTraining(their_config())).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_older_files_repeat_the_table_or_name_the_norm_otherwise(tmp_path: Path) -> None:
    def older(tensors: dict[str, Tensor]) -> None:
        table = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.weight"] = table.clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        for old, new in (("gamma", "weight"), ("beta", "bias")):
            name = "cls.predictions.transform.LayerNorm"
            tensors[f"{name}.{old}"] = tensors.pop(f"{name}.{new}")

    plain = load_bert(changed_folder(tmp_path / "plain", lambda tensors: None))
    again = load_bert(changed_folder(tmp_path / "older", older))
    for (name, one), other in zip(
        plain.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"cls.predictions.decoder.weight": torch.ones(VOCAB, DIM)}),
            "ties 'cls.predictions.decoder.weight' to .*, but the two differ",
        ),
        (lambda t: t.pop("cls.predictions.transform.dense.weight"), "no masked-language-model"),
        (lambda t: t.pop("cls.predictions.transform.dense.bias"), "no tensor .*transform.dense"),
        (lambda t: t.pop("cls.predictions.bias"), "no tensor 'cls.predictions.bias'"),
        (lambda t: t.pop("bert.pooler.dense.weight"), "no tensor 'bert.pooler.dense.weight'"),
        (lambda t: t.update({"cls.odd": torch.ones(2)}), "no place in this model, .*'cls.odd'"),
        (
            lambda t: t.update({"cls.seq_relationship.bias": torch.ones(3)}),
            r"'cls.seq_relationship.bias' must have shape \(2,\) .* got \(3,\)",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_bert(changed_folder(tmp_path, change))


def test_other_architectures_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="heads are those of BERT, this is architecture 'llama'"):
        load_bert(tmp_path)


def test_the_encoder_of_the_same_folder_is_that_of_the_whole_model(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    _, ours = pair_of(transformers.BertForPreTraining, tmp_path, torch.float32)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    encoder = load_pretrained(tmp_path).model
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, ours.encoder.state_dict()[name])


def small(**changes: Any) -> BertForPreTraining:
    return spread(BertForPreTraining(replace(CONFIG, **changes))).double()


def test_the_loss_is_the_mean_over_chosen_positions_only() -> None:
    model, b = small(), batch_of()
    logits = model(b["ids"], real=b["real"], segments=b["segments"])
    probs = logits.tokens.softmax(-1)
    terms = [
        -probs[row, column, b["targets"][row, column]].log()
        for row, column in (b["targets"] != IGNORE).nonzero().tolist()
    ]
    pair = -logits.pair.softmax(-1)[torch.arange(BATCH), b["labels"]].log()
    loss = model.loss(**b)
    torch.testing.assert_close(loss.masked, torch.stack(terms).mean())
    torch.testing.assert_close(loss.pair, pair.mean())
    torch.testing.assert_close(loss.total, loss.masked + loss.pair)


def test_no_target_gives_no_loss_and_no_gradient() -> None:
    model, b = small(), batch_of()
    b["targets"] = torch.full_like(b["targets"], IGNORE)
    for predictions in (None, 7):
        loss = model.loss(b["ids"], b["targets"], predictions=predictions)
        assert float(loss.total.detach()) == 0
        model.zero_grad()
        loss.total.backward()
        assert all(
            parameter.grad is None or not bool(parameter.grad.any())
            for parameter in model.parameters()
        )


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), count=st.integers(1, 50), seed=st.integers(0, 999))
def test_places_are_those_with_targets_in_reading_order(n: int, count: int, seed: int) -> None:
    g = generator(seed)
    targets = torch.randint(0, 9, (n,), generator=g)
    targets[torch.rand(n, generator=g) < 0.6] = IGNORE
    places, kept = select_places(targets, count)
    assert places.shape == kept.shape == (count,)
    expected = (targets != IGNORE).nonzero().squeeze(1)[:count]
    assert torch.equal(places[: len(expected)], expected)
    assert torch.equal(kept[: len(expected)], targets[expected])
    assert bool((kept[len(expected) :] == IGNORE).all())
    assert not bool(places[len(expected) :].any())


def test_targets_beyond_the_number_are_dropped() -> None:
    model, b = small(), batch_of()
    chosen = (b["targets"] != IGNORE).reshape(-1)
    first = chosen & (chosen.long().cumsum(0) <= 5)
    fewer = b["targets"].masked_fill(~first.view(BATCH, N), IGNORE)
    torch.testing.assert_close(
        model.loss(b["ids"], b["targets"], predictions=5).total,
        model.loss(b["ids"], fewer).total,
    )


def test_random_weights_give_the_loss_of_a_uniform_guess(g: torch.Generator) -> None:
    model = initialize_(BertForPreTraining(CONFIG), generator=g, branch_gain=1.0)
    loss = model.loss(**batch_of())
    # Logits of deviation 0.02 * sqrt(24) = 0.1 move the mean loss by about half their variance.
    assert abs(float(loss.masked.detach()) - torch.tensor(float(VOCAB)).log()) < 0.1
    assert abs(float(loss.pair.detach()) - torch.tensor(2.0).log()) < 0.1


def test_inputs_are_left_alone() -> None:
    model, b = small(), batch_of()
    before = {name: value.clone() for name, value in b.items()}
    model.loss(**b).total.backward()
    assert all(torch.equal(value, before[name]) for name, value in b.items())


def test_the_model_runs_on_every_device(device: torch.device) -> None:
    model, b = small(), batch_of()
    expected = model.loss(**b).total
    there = model.to(device)
    made = there.loss(**{name: value.to(device) for name, value in b.items()}).total
    torch.testing.assert_close(made.cpu(), expected)
    nowhere = model.to("meta")
    loss = nowhere.loss(**{name: value.to("meta") for name, value in b.items()})
    assert loss.total.is_meta
    assert loss.total.shape == ()
    assert nowhere(b["ids"].to("meta")).tokens.shape == (BATCH, N, VOCAB)
    assert select_places(b["targets"].to("meta"), 3)[0].is_meta


def test_autocast_stays_finite_and_near() -> None:
    model, b = small().float(), batch_of()
    exact = model.loss(**b).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model.loss(**b).total
    assert narrow.dtype == torch.float32
    # bfloat16 keeps 8 bits: logits of size 10 are off by 0.04.
    torch.testing.assert_close(narrow, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.full((BATCH, 3), 1)}, r"targets must have shape \(5, 11\), got"),
        ({"targets": torch.full((BATCH, N), VOCAB)}, r"targets must lie in \[0, 53\), got 53"),
        ({"labels": torch.ones(3).long()}, r"labels must have shape \(5,\), got \(3,\)"),
        ({"labels": torch.full((BATCH,), 2)}, r"labels must lie in \[0, 2\), got 2"),
        ({"predictions": 0}, "count must be 1 or more, got 0"),
    ],
)
@pytest.mark.usefixtures("own_checks")
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    model = small()
    with pytest.raises(ValueError, match=message):
        model.loss(**batch_of() | change)
