"""One training step of a GPT, a Llama and a BERT, against transformers with the same weights.

A step is what a training loop repeats: clear the gradients, the loss as the library computes it,
its gradient, and AdamW. Both sides use PyTorch's AdamW, so what differs is the model and the loss.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._pair import Pair, Side, close
from benchmarks.pairs._peers import NEEDS, llama_weights, quiet, their_llama
from companion.pretraining.autoregressive import gpt2_config, llama_config, next_token_loss
from companion.pretraining.masked import BertForPreTraining, corrupt
from companion.transformer.block import Decoder, Learned, TransformerConfig, initialize_

VOCAB, LAYERS, DIM, HEADS, CONTEXT, BATCH = 8192, 4, 256, 8, 256, 8
PEER = "transformers, SDPA, same weights"


def _batch(device: torch.device) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(5, VOCAB, (BATCH, CONTEXT), generator=g).to(device)


def _step(model: nn.Module, table: nn.Parameter, loss_of: Callable[[], Tensor]) -> Side:
    """A training step; it returns the loss and the table of embeddings after the first one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    first: list[Tensor] = []

    def run() -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        if not first:
            assert table.grad is not None
            first.extend([loss.detach(), table.grad.clone()])
        optimizer.step()
        return first

    return run


def _fresh(model: Any) -> Any:
    """Initialize a model as one does before training: the times depend on the sizes of logits."""
    return initialize_(model, generator=torch.Generator().manual_seed(0))


def _gpt() -> Decoder:
    config = gpt2_config((LAYERS, DIM, HEADS), vocab=VOCAB, context=CONTEXT)
    made: Decoder = _fresh(Decoder(config))
    return made


def _gpt_ours(device: torch.device) -> Side:
    model, ids = _gpt().to(device), _batch(device)
    return _step(model, model.tokens.weight, lambda: next_token_loss(model, ids))


def _gpt_weights(model: Decoder) -> dict[str, Tensor]:
    """Our GPT's weights under their names; their linear maps are stored transposed."""
    assert model.positions is not None
    assert model.final_norm is not None
    named = {
        "transformer.wte.weight": model.tokens.weight,
        "transformer.wpe.weight": model.positions.weight,
        "lm_head.weight": model.head.weight,
        "transformer.ln_f.weight": model.final_norm.weight,
        "transformer.ln_f.bias": model.final_norm.bias,
    }
    for index, block in enumerate(model.blocks):
        there = f"transformer.h.{index}"
        for name, norm in (("ln_1", block.attention_norm), ("ln_2", block.feed_forward_norm)):
            named |= {f"{there}.{name}.weight": norm.weight, f"{there}.{name}.bias": norm.bias}
        for name, linear in (
            ("attn.c_attn", block.attention.qkv),
            ("attn.c_proj", block.attention.out),
            ("mlp.c_fc", block.feed_forward.up),
            ("mlp.c_proj", block.feed_forward.down),
        ):
            named |= {
                f"{there}.{name}.weight": linear.weight.T,
                f"{there}.{name}.bias": linear.bias,
            }
    return {name: tensor.detach() for name, tensor in named.items()}


def _gpt_theirs(device: torch.device) -> Side:
    transformers = quiet()
    made = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=CONTEXT,
        n_embd=DIM,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
    )
    model = transformers.GPT2LMHeadModel(made)
    model.load_state_dict(_gpt_weights(_gpt()))
    model, ids = model.train().to(device), _batch(device)
    return _step(
        model, model.transformer.wte.weight, lambda: model(ids, labels=ids, use_cache=False).loss
    )


def _llama() -> Decoder:
    config = llama_config((LAYERS, DIM, HEADS), vocab=VOCAB, context=CONTEXT)
    made: Decoder = _fresh(Decoder(config))
    return made


def _llama_ours(device: torch.device) -> Side:
    model, ids = _llama().to(device), _batch(device)
    return _step(model, model.tokens.weight, lambda: next_token_loss(model, ids))


def _llama_theirs(device: torch.device) -> Side:
    ours, ids = _llama(), _batch(device)
    model = their_llama(ours.config)
    model.load_state_dict(llama_weights(ours))
    model = model.train().to(device)
    return _step(
        model, model.model.embed_tokens.weight, lambda: model(ids, labels=ids, use_cache=False).loss
    )


def _bert() -> BertForPreTraining:
    config = TransformerConfig(
        vocab=VOCAB,
        dim=DIM,
        layers=LAYERS,
        heads=HEADS,
        ff_dim=4 * DIM,
        context=CONTEXT,
        norm_place="post",
        norm_eps=1e-12,
        positions=Learned(),
        embedding_norm=True,
        segments=2,
    )
    made: BertForPreTraining = _fresh(BertForPreTraining(config))
    return made


def _masked(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Corrupted ids, targets, segments and pair labels."""
    g = torch.Generator().manual_seed(2)
    ids = _batch(torch.device("cpu"))
    made = corrupt(ids, vocab=VOCAB, mask_id=4, special=[0, 1, 2, 3, 4], generator=g)
    segments = (torch.arange(CONTEXT) >= CONTEXT // 2).long().expand(BATCH, CONTEXT).contiguous()
    labels = torch.arange(BATCH) % 2
    return (made.ids.to(device), made.targets.to(device), segments.to(device), labels.to(device))


def _bert_ours(device: torch.device) -> Side:
    model = _bert().to(device)
    ids, targets, segments, labels = _masked(device)
    return _step(
        model,
        model.encoder.tokens.weight,
        lambda: model.loss(ids, targets, labels, segments=segments).total,
    )


def _bert_weights(model: BertForPreTraining) -> dict[str, Tensor]:
    """Our BERT's weights under their names."""
    encoder = model.encoder
    assert encoder.positions is not None
    assert encoder.segments is not None
    assert encoder.embedding_norm is not None
    assert model.pooler is not None
    assert model.pair is not None
    named: dict[str, Tensor] = {
        "bert.embeddings.word_embeddings.weight": encoder.tokens.weight,
        "bert.embeddings.position_embeddings.weight": encoder.positions.weight,
        "bert.embeddings.token_type_embeddings.weight": encoder.segments.weight,
        "cls.predictions.bias": model.bias,
        "cls.predictions.decoder.weight": encoder.tokens.weight,
        "cls.predictions.decoder.bias": model.bias,
    }
    modules: dict[str, nn.Module] = {
        "bert.embeddings.LayerNorm": encoder.embedding_norm,
        "bert.pooler.dense": model.pooler,
        "cls.seq_relationship": model.pair,
        "cls.predictions.transform.dense": model.transform,
        "cls.predictions.transform.LayerNorm": model.transform_norm,
    }
    for index, block in enumerate(encoder.blocks):
        there = f"bert.encoder.layer.{index}"
        modules |= {
            f"{there}.attention.output.dense": block.attention.out,
            f"{there}.attention.output.LayerNorm": block.attention_norm,
            f"{there}.intermediate.dense": block.feed_forward.up,
            f"{there}.output.dense": block.feed_forward.down,
            f"{there}.output.LayerNorm": block.feed_forward_norm,
        }
        qkv = block.attention.qkv
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * DIM, (part + 1) * DIM)
            named |= {
                f"{there}.attention.self.{name}.weight": qkv.weight[rows],
                f"{there}.attention.self.{name}.bias": qkv.bias[rows],
            }
    for name, module in modules.items():
        named |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {name: tensor.detach() for name, tensor in named.items()}


def _bert_theirs(device: torch.device) -> Side:
    transformers = quiet()
    made = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    model = transformers.BertForPreTraining(made)
    lost = model.load_state_dict(_bert_weights(_bert()), strict=False)
    assert not lost.unexpected_keys, lost.unexpected_keys
    assert all("position_ids" in key for key in lost.missing_keys), lost.missing_keys
    model = model.train().to(device)
    ids, targets, segments, labels = _masked(device)
    return _step(
        model,
        model.bert.embeddings.word_embeddings.weight,
        lambda: (
            model(ids, token_type_ids=segments, labels=targets, next_sentence_label=labels).loss
        ),
    )


def pairs() -> Iterator[Pair]:
    """Yield the pairs of this module."""
    size = f"{LAYERS} layers of width {DIM}, one step of {BATCH} x {CONTEXT} tokens"
    for name, what, ours, theirs, note in (
        ("gpt", "GPT-2", _gpt_ours, _gpt_theirs, ""),
        ("llama", "Llama", _llama_ours, _llama_theirs, ""),
        (
            "bert",
            "BERT, both tasks",
            _bert_ours,
            _bert_theirs,
            "The peer computes logits at all positions, ours at those that are predicted.",
        ),
    ):
        yield Pair(
            name=f"train/{name}",
            task=f"{what}: {size}",
            peer=PEER,
            needs=NEEDS,
            ours=ours,
            theirs=theirs,
            same=close(1e-4),
            speed=1.0,
            memory=1.0,
            note=note,
        )
