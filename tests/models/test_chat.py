"""Chat templates render as in transformers, and fail with one clear error."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models

from companion.models import load_pretrained, render_chat, save_pretrained
from companion.transformer.block import Decoder, TransformerConfig

TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "a < b", "z": 1, "b": ["\u00e9", 2.5]},
    {"role": "assistant", "content": "ok & so\n"},
]


def theirs(template: str) -> str:
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template)
    said: str = made.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    return said


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{% for m in messages %}{% break %}{% endfor %}x", "x"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}y{% endfor %}", "y"),
        ("{{ messages[0].content | tojson }}", '"a < b"'),
        ("{{ messages[0] | tojson }}", json.dumps(TALK[0], ensure_ascii=False)),
        ("{{ messages[0] | tojson(indent=2, sort_keys=True) }}", None),
        ("{% generation %}\n{{ messages[1].content }}{% endgeneration %}\nend", None),
        ("{% for m in messages %}\n  {{ m.role }}\n{% endfor %}", None),
        ("{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}", "3"),
        ("{{ tools }}{{ documents }}{{ add_generation_prompt }}", "NoneNoneTrue"),
    ],
)
def test_a_template_gives_what_it_gives_in_transformers(template: str, said: str | None) -> None:
    mine = render_chat(template, TALK, {})
    assert mine == theirs(template)
    assert said is None or mine == said


def test_a_template_may_ask_for_the_date() -> None:
    years = {datetime.now().year}
    said = render_chat("{{ strftime_now('%Y') }}", TALK, {})
    assert int(said) in years | {datetime.now().year}


def test_what_a_template_refuses_is_said() -> None:
    with pytest.raises(ValueError, match="refuses this conversation: no system"):
        render_chat("{{ raise_exception('no system') }}", TALK, {})


@pytest.mark.parametrize(
    "template",
    ["{% for %}", "{{ messages[0].nothing.more }}", "{{ 1 / 0 }}", "{{ messages.append(1) }}"],
)
def test_other_faults_of_a_template_are_one_clear_error(template: str) -> None:
    with pytest.raises(ValueError, match="the chat template cannot be rendered"):
        render_chat(template, TALK, {})


def test_of_several_named_templates_the_default_is_meant(tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab=7,
        dim=12,
        layers=1,
        heads=3,
        ff_dim=13,
        context=9,
        norm="rms",
        activation="swiglu",
        attention_bias=False,
        ff_bias=False,
    )
    save_pretrained(Decoder(config), tmp_path)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    named = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "hello {{ messages[0].content }}"},
    ]
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": named}))
    assert load_pretrained(tmp_path).chat_prompt("you") == "hello you"
    path.write_text(json.dumps({"chat_template": named[:1]}))
    with pytest.raises(ValueError, match="no chat template"):
        load_pretrained(tmp_path).chat_prompt("you")
