"""The loss of a language model, its scores of whole texts, and what it writes."""

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from companion.foundations.language_models import bits_per_byte
from companion.pretraining.autoregressive import (
    PanguAlpha,
    _draw,
    document_places,
    draw,
    gpt2_config,
    initialize,
    llama_config,
    next_token_log_probs,
    next_token_loss,
    text_log_probs,
)
from companion.transformer.block import Decoder, TransformerConfig

V, CONTEXT = 29, 23
# Sums of some dozen terms in a few layers lose a handful of the 53 bits of a double.
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SINGLE = {"rtol": 1e-5, "atol": 1e-5}


def model_of(form: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Decoder:
    g = torch.Generator().manual_seed(seed)
    if form == "gpt2":
        config = gpt2_config((2, 24, 3), vocab=V, context=CONTEXT)
    else:
        config = llama_config((2, 24, 6), vocab=V, context=CONTEXT, kv_heads=2, ff_dim=37)
    model = initialize(config, generator=g, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # away from zeros and ones, so that all count
            parameter += 0.3 * torch.randn(parameter.shape, generator=g, dtype=dtype)
    return model


def ids_of(batch: int = 3, n: int = 19, seed: int = 1) -> Tensor:
    return torch.randint(0, V, (batch, n), generator=torch.Generator().manual_seed(seed))


def their_gpt2(model: Decoder) -> Any:
    c = model.config
    config = transformers.GPT2Config(
        vocab_size=c.vocab,
        n_embd=c.dim,
        n_layer=c.layers,
        n_head=c.heads,
        n_positions=c.context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(config).to(model.head.weight.dtype)
    made = {"wte.weight": model.tokens.weight, "wpe.weight": model.positions.weight}  # type: ignore[union-attr]
    names = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    for name, value in model.state_dict().items():
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            flip = value.ndim == 2
            made[f"h.{layer}.{names[part]}.{kind}"] = value.T if flip else value
        elif name.startswith("final_norm."):
            made[name.replace("final_norm", "ln_f")] = value
    missing = theirs.transformer.load_state_dict(made, strict=False)
    assert not missing.unexpected_keys
    assert not missing.missing_keys
    return theirs


def their_llama(model: Decoder) -> Any:
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab,
        hidden_size=c.dim,
        intermediate_size=c.ff_dim,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.key_value_heads,
        max_position_embeddings=c.context,
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=False,
    )
    theirs = transformers.LlamaForCausalLM(config).to(model.head.weight.dtype)
    own = model.state_dict()
    made = {
        "model.embed_tokens.weight": own["tokens.weight"],
        "model.norm.weight": own["final_norm.weight"],
        "lm_head.weight": own["head.weight"],
    }
    kv = c.key_value_heads * c.head_width
    for layer in range(c.layers):
        a, b = f"blocks.{layer}", f"model.layers.{layer}"
        q, k, v = own[f"{a}.attention.qkv.weight"].split([c.dim, kv, kv])
        gate, up = own[f"{a}.feed_forward.gate_up.weight"].chunk(2)
        made |= {
            f"{b}.self_attn.q_proj.weight": q,
            f"{b}.self_attn.k_proj.weight": k,
            f"{b}.self_attn.v_proj.weight": v,
            f"{b}.self_attn.o_proj.weight": own[f"{a}.attention.out.weight"],
            f"{b}.mlp.gate_proj.weight": gate,
            f"{b}.mlp.up_proj.weight": up,
            f"{b}.mlp.down_proj.weight": own[f"{a}.feed_forward.down.weight"],
            f"{b}.input_layernorm.weight": own[f"{a}.attention_norm.weight"],
            f"{b}.post_attention_layernorm.weight": own[f"{a}.feed_forward_norm.weight"],
        }
    theirs.load_state_dict(made)
    return theirs


@pytest.mark.parametrize("form", ["gpt2", "llama"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, EXACT), (torch.float32, SINGLE)])
@pytest.mark.parametrize("chunked", [True, False])
def test_logits_loss_and_gradients_equal_those_of_transformers(
    form: str, dtype: torch.dtype, close: dict[str, float], chunked: bool
) -> None:
    ours = model_of(form, dtype=dtype)
    theirs = (their_gpt2 if form == "gpt2" else their_llama)(ours)
    if form == "llama":  # theirs computes the angles in float32, whatever the model's type
        theirs.model.rotary_emb.inv_freq = theirs.model.rotary_emb.inv_freq.to(dtype)
        close = {"rtol": 1e-5, "atol": 1e-5}
    ids = ids_of()
    its = theirs(ids).logits
    torch.testing.assert_close(ours(ids), its, **close)
    its_loss = torch.nn.functional.cross_entropy(its[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss = next_token_loss(ours, ids, chunked=chunked)
    torch.testing.assert_close(loss, its_loss, **close)
    torch.testing.assert_close(loss.float(), theirs(ids, labels=ids).loss, **SINGLE)
    loss.backward()
    its_loss.backward()
    grad = ours.tokens.weight.grad
    its_grad = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(grad, its_grad, **close)
    first = ours.blocks[0].attention.out.weight.grad
    layer = (theirs.transformer.h if form == "gpt2" else theirs.model.layers)[0]
    its_first = layer.attn.c_proj.weight.grad.T if form == "gpt2" else None
    if its_first is None:
        its_first = layer.self_attn.o_proj.weight.grad
    torch.testing.assert_close(first, its_first, **close)


def test_the_loss_is_the_mean_surprise_token_by_token() -> None:
    model, ids = model_of("llama"), ids_of(2, 7)
    surprises = [
        -torch.log_softmax(model(ids[row : row + 1, :t])[0, -1], -1)[ids[row, t]]
        for row in range(2)
        for t in range(1, 7)
    ]
    torch.testing.assert_close(next_token_loss(model, ids), torch.stack(surprises).mean(), **EXACT)
    total = next_token_loss(model, ids, reduction="sum")
    torch.testing.assert_close(total, torch.stack(surprises).sum(), **EXACT)
    scored = next_token_log_probs(model, ids)
    torch.testing.assert_close(-scored.flatten(), torch.stack(surprises), **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side: str) -> None:
    model, ids = model_of("gpt2"), ids_of(1, 11)
    alone = next_token_log_probs(model, ids)
    row = torch.full((1, 16), 5)
    place = slice(5, 16) if side == "left" else slice(0, 11)
    row[:, place] = ids
    real = torch.zeros(1, 16, dtype=torch.bool)
    real[:, place] = True
    scored = next_token_log_probs(model, row, real=real)
    kept = slice(5, 15) if side == "left" else slice(0, 10)
    torch.testing.assert_close(scored[:, kept], alone, **EXACT)
    assert torch.equal(scored.count_nonzero(), torch.tensor(10))
    torch.testing.assert_close(next_token_loss(model, row, real=real), -alone.mean(), **EXACT)


@pytest.mark.parametrize("form", ["gpt2", "llama", "pangu"])
def test_packed_documents_count_as_separate_ones(form: str) -> None:
    if form == "pangu":
        config = TransformerConfig(vocab=V, dim=24, layers=3, heads=3, ff_dim=37, context=CONTEXT)
        torch.manual_seed(2)
        model: Decoder = PanguAlpha(config).double()
    else:
        model = model_of(form)
    end = 0
    texts = [torch.tensor([[*row, end]]) for row in ([3, 1, 4], [1, 5, 9, 2, 6, 5], [8, 7])]
    packed = torch.cat(texts, dim=1)
    numbers, places = document_places(packed, end=end)
    assert places.tolist()[0] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    together = next_token_loss(model, packed, documents=numbers, reduction="sum")
    apart = sum(next_token_loss(model, text, reduction="sum") for text in texts)
    torch.testing.assert_close(together, apart, **EXACT)
    # Without the mask the second document reads the first.
    mixed = next_token_loss(model, packed, reduction="sum")
    assert bool((mixed - together).abs() > 1e-3)
    a = torch.autograd.grad(together, model.tokens.weight)[0]
    b = torch.autograd.grad(apart, model.tokens.weight)[0]  # type: ignore[call-overload]
    torch.testing.assert_close(a, b, **EXACT)


def test_documents_with_any_numbers_start_anew_where_the_number_changes() -> None:
    model = model_of("gpt2")
    ids = ids_of(1, 9)
    odd = torch.tensor([[4, 4, 4, 2, 2, 2, 2, 9, 9]])
    even = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]])
    first, second = (next_token_loss(model, ids, documents=d) for d in (odd, even))
    torch.testing.assert_close(first, second, **EXACT)


@pytest.mark.parametrize("n", [1, 5, 23, 24, 61])
@pytest.mark.parametrize("stride", [None, 1, 7, 23])
def test_a_long_text_is_scored_token_by_token_in_the_widest_window(
    n: int, stride: int | None
) -> None:
    model, text = model_of("llama"), ids_of(1, n)[0]
    scored = text_log_probs(model, text, start=3, stride=stride, batch_size=2)
    assert scored.shape == (n,)
    whole = torch.cat([torch.tensor([3]), text])
    step = 11 if stride is None else stride
    for t in range(1, n + 1):
        # The window that scores token t ends at the first multiple of the stride from t on.
        end = CONTEXT if t <= CONTEXT else CONTEXT + -(-(t - CONTEXT) // step) * step
        begin = max(0, min(end, n) - CONTEXT)
        logits = model(whole[None, begin:t])[0, -1]
        expected = torch.log_softmax(logits, -1)[whole[t]]
        torch.testing.assert_close(scored[t - 1], expected, **EXACT)


def test_bits_per_byte_of_a_uniform_model_are_known() -> None:
    model = model_of("gpt2").requires_grad_(False)
    model.head = torch.nn.Linear(24, V, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.head.weight)
    scored = text_log_probs(model, ids_of(1, 40)[0], start=0)
    bits = bits_per_byte(scored, size=100)
    torch.testing.assert_close(bits, 0.4 * torch.tensor(float(V), dtype=torch.float64).log2())


def test_inputs_are_not_changed() -> None:
    model, ids = model_of("gpt2"), ids_of()
    real = torch.ones_like(ids, dtype=torch.bool)
    real[0, 15:] = False
    documents = torch.zeros_like(ids)
    before = [t.clone() for t in (ids, real, documents)]
    next_token_loss(model, ids, real=real)
    next_token_loss(model, ids, documents=documents)
    for now, then in zip((ids, real, documents), before, strict=True):
        assert torch.equal(now, then)


def test_narrow_ids_do() -> None:
    model, ids = model_of("llama"), ids_of()
    torch.testing.assert_close(
        next_token_loss(model, ids.to(torch.uint8)), next_token_loss(model, ids)
    )


@pytest.mark.parametrize("chunked", [True, False])
def test_the_loss_runs_on_meta(chunked: bool) -> None:
    with torch.device("meta"):
        model = Decoder(gpt2_config((2, 24, 3), vocab=V, context=CONTEXT))
    ids = torch.zeros(3, 19, dtype=torch.long, device="meta")
    documents = torch.zeros_like(ids)
    loss = next_token_loss(model, ids, documents=documents, chunked=chunked)
    assert loss.device.type == "meta"
    assert next_token_log_probs(model, ids).shape == (3, 18)
    assert text_log_probs(model, ids[0], start=0).shape == (19,)


@pytest.mark.usefixtures("own_checks")
def test_misuse_says_what_to_do() -> None:
    model, ids = model_of("gpt2"), ids_of()
    with pytest.raises(ValueError, match="tokens of each sequence must be 2 or more, got 1"):
        next_token_loss(model, ids[:, :1])
    with pytest.raises(ValueError, match="more than the model's context of 23"):
        next_token_loss(model, ids_of(1, 25))
    with pytest.raises(ValueError, match="real must be boolean"):
        next_token_loss(model, ids, real=torch.ones_like(ids))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="documents must have shape"):
        next_token_loss(model, ids, documents=ids[:, 1:])
    with pytest.raises(ValueError, match="stride must be"):
        text_log_probs(model, ids[0], start=0, stride=24)
    with pytest.raises(ValueError, match="tokens of the text"):
        text_log_probs(model, ids[0, :0], start=0)


# --- drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e-37, 1e-45, 1e-300, 0.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_draws_at_a_tiny_temperature_are_those_of_the_limit(
    temperature: float, dtype: torch.dtype, g: torch.Generator
) -> None:
    logits = torch.tensor([1, 2, 300], dtype=dtype).expand(997, 3)
    assert (draw(logits, generator=g, temperature=temperature) == 2).all()
    if temperature > 0:  # the largest two share the draws; at 0 the first one is taken
        tied = torch.tensor([7, -5, 7], dtype=dtype).expand(997, 3)
        seen = draw(tied, generator=g, temperature=temperature)
        # Five standard deviations of a share of 997 fair draws.
        assert abs(float((seen == 0).double().mean()) - 0.5) < 5 * 0.5 / 997**0.5
        assert not (seen == 1).any()


@pytest.mark.parametrize(
    "bad", [[0.0, float("nan")], [float("-inf")] * 2, [float("inf"), 0.0], [float("inf")] * 2]
)
@pytest.mark.parametrize("temperature", [1.0, 0.0, 1e-37])
def test_rows_that_give_no_distribution_are_refused(
    bad: list[float], temperature: float, g: torch.Generator
) -> None:
    rows = torch.tensor([[0.0, 1.0], bad, [1.0, float("-inf")]])
    with pytest.raises(
        ValueError, match=r"largest logit of each row must be finite, got -?(nan|inf)"
    ):
        draw(rows, generator=g, temperature=temperature)
    draw(rows[::2], generator=g, temperature=temperature)


@pytest.mark.parametrize(
    ("u", "row", "want"),
    [
        # Inversion: the class i with F(i - 1) <= u < F(i).
        (0.0, [0.0, 0.0, 0.25, 0.75], 2),
        (0.0, [0.25, 0.0, 0.75, 0.0], 0),
        (0.25, [0.25, 0.0, 0.75, 0.0], 2),
        (1 - 2**-24, [0.25, 0.5, 0.25, 0.0], 2),
    ],
)
def test_a_uniform_number_at_the_edge_draws_no_class_of_probability_0(
    u: float, row: list[float], want: int, monkeypatch: pytest.MonkeyPatch, g: torch.Generator
) -> None:
    monkeypatch.setattr(
        _draw, "rand", lambda *size, generator, device, dtype: torch.full(size, u, dtype=dtype)
    )
    assert int(draw(torch.tensor(row).log(), generator=g)) == want


def test_draws_follow_the_softmax(g: torch.Generator) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.7, -3.0])
    n = 40_000
    for temperature in (1.0, 0.5, 2.0):
        p = torch.softmax(logits.double() / temperature, -1)
        seen = draw(logits.expand(n, 6), generator=g, temperature=temperature)
        counts = torch.bincount(seen, minlength=6).double()
        # Five standard errors of a binomial count.
        assert ((counts - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt()).all()
        assert counts[3] == 0


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=9),
    st.integers(0, 2**31),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_draws_are_classes_of_positive_probability(
    values: list[float], seed: int, dtype: torch.dtype
) -> None:
    logits = torch.tensor([*values, -torch.inf], dtype=dtype)
    drawn = draw(logits, generator=torch.Generator().manual_seed(seed))
    assert drawn.dtype == torch.int64
    assert 0 <= int(drawn) < len(values)


def test_a_draw_from_no_class_is_refused(g: torch.Generator) -> None:
    with pytest.raises(ValueError, match="classes"):
        draw(torch.empty(2, 0), generator=g)
