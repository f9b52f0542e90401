"""Chat templates, in the environment that Hugging Face gives them."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

__all__ = ["default_template", "render_chat"]


def default_template(told: Any) -> str | None:
    """Return the template that is meant where a configuration has one, several by name, or none."""
    if isinstance(told, list):
        told = {each.get("name"): each.get("template") for each in told if isinstance(each, dict)}
    if isinstance(told, dict):
        told = told.get("default")
    return told if isinstance(told, str) else None


def render_chat(
    template: str, messages: Sequence[Mapping[str, Any]], special_tokens: Mapping[str, str]
) -> str:
    """Write a conversation and the opening of the answer.

    Args:
        template: The Jinja template.
        messages: The conversation.
        special_tokens: Texts such as ``bos_token`` that the template may name.

    Returns:
        The text.

    Raises:
        ValueError: If the template refuses the conversation, or cannot be read or rendered.

    Numerics:
        As in ``apply_chat_template`` of transformers: a sandbox that changes nothing, blocks
        without their own line breaks, ``{% break %}`` and ``{% continue %}``, ``{% generation %}``
        (which marks the answers and writes its body), ``tojson`` as :func:`json.dumps` with keys
        in their order and no escapes for HTML, ``strftime_now`` and ``raise_exception``.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block that marks what the model has written."""

        tags = {"generation"}  # noqa: RUF012  Jinja reads it so

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    def refuse(message: str) -> None:
        raise _Refused(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=list(messages),
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **special_tokens,
        )
    except _Refused as error:
        raise ValueError(f"the chat template refuses this conversation: {error}") from error
    except Exception as error:  # a template is a program: it can fail in any way
        raise ValueError(
            f"the chat template cannot be rendered ({type(error).__name__}): {error}"
        ) from error


class _Refused(Exception):
    """What a template raises on purpose."""


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
