"""JSON schemas as regular expressions, and as rules of a grammar where they contain themselves."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from companion.core import check_count
from companion.generation.control._syntax import (
    Call,
    Chars,
    Choice,
    Node,
    Ranges,
    Repeat,
    Row,
    literal,
    others,
    parse,
    parse_pattern,
    tidy,
    written,
)

__all__ = ["is_recursive", "schema_regex", "schema_rules"]

#: What may stand in a JSON string as it is.
PLAIN = others(tidy([(0, 31), (34, 34), (92, 92)]))
INTEGER = parse(r"-?(?:0|[1-9][0-9]*)")
NUMBER = parse(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+\-]?[0-9]+)?")
ESCAPED = parse(
    r"\\(?:[\"\\/bfnrt]|u(?:[0-9A-CE-Fa-ce-f][0-9A-Fa-f]{3}|[Dd][0-7][0-9A-Fa-f]{2}"
    r"|[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}))"
)
CHARACTER = Choice((Chars(PLAIN), ESCAPED))
YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
FORMATS = {
    "date": rf"(?:{YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    rf"|{LEAP}-02-29)",
    "time": r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
    r"(?:Z|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"
NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated"}
DEFINITIONS = ("$defs", "definitions")
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": set[str](),
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}


def schema_regex(schema: object, *, whitespace: int | None = None) -> str:
    r"""Write a JSON schema as a regular expression of its instances.

    Objects with ``properties`` and ``required``, arrays with ``items``, ``minItems`` and
    ``maxItems``, strings with ``pattern`` or ``minLength`` and ``maxLength`` or ``format`` (date,
    time, date-time, uuid), ``integer``, ``number``, ``boolean``, ``null``, ``enum``, ``const``,
    ``anyOf``, several types, and ``$ref`` into ``$defs``. Any other keyword is an error: one that
    is left out silently would let pass what the schema forbids.

    The texts are a part of all instances: properties come in the order of the schema, others do not
    come at all (which any ``additionalProperties`` allows), and values of ``enum`` are written as
    ``json.dumps`` writes them. A ``\u`` escape is a character, never half a pair. Patterns are
    those of ECMA-262, as JSON Schema has it: ``.`` is no end of a line, and ``\S`` no white space
    of Unicode. An object without ``properties`` may have any members, one name twice among them.

    Args:
        schema: The schema, as ``json.loads`` gives it.
        whitespace: At most so many spaces after each bracket, comma and colon and before each
            bracket and comma. By default exactly what ``json.dumps`` writes: one space after each
            comma and colon, and none elsewhere. Without a bound a model may write blanks for
            ever.

    Returns:
        The expression, for :meth:`TokenIndex.from_regex` or any engine.

    Raises:
        ValueError: If a keyword or its value is not supported, no instance exists, or the schema
            contains itself.

    Book: :doc:`/book/generation/control`

    Example:
        >>> print(schema_regex({"type": "object", "properties": {"ok": {"type": "boolean"}}}))
        \{(?:"ok": (?:true|false))?\}
    """
    rules = schema_rules(schema, whitespace=whitespace)
    again = _recursive_rule(rules)
    if again is not None:
        raise ValueError(
            f"the schema contains itself at {again!r}, which no regular expression says: use "
            "Pushdown.from_schema"
        )

    def inlined(node: Node) -> Node:
        if isinstance(node, Call):
            node = inlined(rules[node.rule])
        elif isinstance(node, Row):
            node = Row(tuple(map(inlined, node.parts)))
        elif isinstance(node, Choice):
            node = Choice(tuple(map(inlined, node.options)))
        elif isinstance(node, Repeat):
            node = Repeat(inlined(node.part), node.low, node.high)
        return node

    return written(inlined(rules["#"]))


def is_recursive(schema: object) -> bool:
    """Tell whether a JSON schema contains itself, so that it needs a :class:`Pushdown`.

    Args:
        schema: The schema, as for :func:`schema_regex`.

    Returns:
        Whether it does. A schema that leaves a value open, like ``{}``, does: any JSON value may
        contain others.

    Raises:
        ValueError: As :func:`schema_regex`.

    Book: :doc:`/book/generation/control`

    Example:
        >>> is_recursive({"type": "integer"}), is_recursive({"type": "array"})
        (False, True)
    """
    return _recursive_rule(schema_rules(schema)) is not None


def _recursive_rule(rules: Mapping[str, Node]) -> str | None:
    """A rule that calls itself on the way, if there is one."""

    def calls(node: Node) -> set[str]:
        if isinstance(node, Call):
            return {node.rule}
        if isinstance(node, Repeat):
            return calls(node.part)
        inner = node.parts if isinstance(node, Row) else ()
        inner = node.options if isinstance(node, Choice) else inner
        return set[str]().union(*map(calls, inner))

    graph = {name: calls(node) for name, node in rules.items()}
    for name in graph:
        reached, queue = set[str](), list(graph[name])
        while queue:
            other = queue.pop()
            if other not in reached:
                reached.add(other)
                queue.extend(graph[other])
        if name in reached:
            return name
    return None


def schema_rules(schema: object, *, whitespace: int | None = None) -> dict[str, Node]:
    """Write a JSON schema as rules: ``#`` for all of it, and one for each ``$ref``.

    A schema without any keyword, ``{}`` or ``True``, is any JSON value: the rule ``any``.
    """
    if whitespace is not None:
        check_count("whitespace", whitespace, low=0)
    return _Reader(schema, whitespace).rules


class _Reader:
    """A schema on its way to rules."""

    def __init__(self, schema: Any, whitespace: int | None) -> None:
        self.whole = schema
        blank: Node = literal("")
        if whitespace:
            blank = Repeat(Chars(((32, 32),)), 0, whitespace)
        after = literal(" ") if whitespace is None else blank
        self.blank, self.comma = blank, Row((blank, literal(","), after))
        self.colon = Row((blank, literal(":"), after))
        self.rules: dict[str, Node] = {}
        self.rules["#"] = self.read(schema, "#")

    def read(self, schema: Any, where: str) -> Node:
        if schema is True or schema == {}:
            return self.anything()
        if not isinstance(schema, Mapping):
            raise ValueError(f"at {where}: a schema is an object, got {schema!r}")
        given = {
            key: value
            for key, value in schema.items()
            if key not in NOTES and key not in DEFINITIONS
        }
        if not given:
            return self.anything()
        if "$ref" in given:
            self.only(given, {"$ref"}, where)
            return self.reference(given["$ref"], where)
        for key in ("enum", "const"):
            if key in given:
                self.only(given, {key, "type"}, where)
                values = given[key] if key == "enum" else [given[key]]
                return self.values(values, given.get("type"), where)
        if "anyOf" in given:
            self.only(given, {"anyOf"}, where)
            options = given["anyOf"]
            if not isinstance(options, list | tuple):
                raise ValueError(f"at {where}: anyOf lists schemas, got {options!r}")
            return Choice(tuple(self.read(s, f"{where}/anyOf/{i}") for i, s in enumerate(options)))
        kinds = given.get("type")
        if kinds is None:
            raise ValueError(
                f"at {where}: {', '.join(given)} without a type is not supported: name the type"
            )
        several = self.kinds(kinds, where)
        known = {"type"}.union(*(KEYWORDS[kind] for kind in several))
        self.only(given, known, where)
        made = tuple(getattr(self, f"{kind}_")(given, where) for kind in several)
        return made[0] if len(made) == 1 else Choice(made)

    def kinds(self, kind: Any, where: str) -> list[str]:
        several = list(kind) if isinstance(kind, list | tuple) else [kind]
        unknown = [one for one in several if not isinstance(one, str) or one not in KEYWORDS]
        if unknown or not several:
            raise ValueError(f"at {where}: there is no type {unknown or several}")
        return several

    def only(self, given: Mapping[str, Any], known: set[str], where: str) -> None:
        for key in given:
            if key not in known:
                raise ValueError(
                    f"at {where}: the keyword {key!r} is not supported here, and leaving it out "
                    "would let pass what it forbids"
                )

    def reference(self, target: Any, where: str) -> Node:
        if not isinstance(target, str) or (target != "#" and not target.startswith("#/")):
            raise ValueError(
                f"at {where}: only references by a path inside of the schema, such as "
                f"'#/$defs/name', got {target!r}"
            )
        if target not in self.rules:
            found = self.whole
            for part in target[1:].split("/")[1:]:
                name = part.replace("~1", "/").replace("~0", "~")
                if not isinstance(found, Mapping) or name not in found:
                    raise ValueError(f"at {where}: nothing is at {target!r}")
                found = found[name]
            self.rules[target] = Row(())  # it may be met again inside
            self.rules[target] = self.read(found, target)
        return Call(target)

    def values(self, values: Any, kind: Any, where: str) -> Node:
        if not isinstance(values, list | tuple):
            raise ValueError(f"at {where}: enum lists values, got {values!r}")
        kinds = None if kind is None else self.kinds(kind, where)
        try:
            texts = [
                json.dumps(v, ensure_ascii=False, allow_nan=False)
                for v in values
                if kinds is None or _is(v, kinds)
            ]
        except ValueError:
            raise ValueError(f"at {where}: JSON has no NaN and no infinity: {values!r}") from None
        if not texts:
            raise ValueError(f"at {where}: no value satisfies the constraint")
        return Choice(tuple(literal(text) for text in texts))

    def anything(self) -> Node:
        if "any" not in self.rules:
            self.rules["any"] = Row(())
            member = Row((self.string_({}, "any"), self.colon, Call("any")))
            self.rules["any"] = Choice(
                (
                    self.listed("{", member, 0, None, "}"),
                    self.listed("[", Call("any"), 0, None, "]"),
                    self.string_({}, "any"),
                    NUMBER,
                    *(literal(word) for word in ("true", "false", "null")),
                )
            )
        return Call("any")

    def listed(self, left: str, item: Node, low: int, high: int | None, right: str) -> Node:
        more = Row((self.comma, item))
        rest = Repeat(more, max(low - 1, 0), None if high is None else max(high - 1, 0))
        some: Node = Row((item, rest))
        if high == 0:
            some = literal("")
        elif low == 0:
            some = Repeat(some, 0, 1)
        if high == 0:
            return Row((literal(left), self.blank, literal(right)))
        return Row((literal(left), self.blank, some, self.blank, literal(right)))

    def string_(self, given: Mapping[str, Any], where: str) -> Node:
        limits = {"minLength", "maxLength"} & given.keys()
        chosen = [key for key in ("pattern", "format") if key in given]
        if len(chosen) + bool(limits) > 1:
            both = ", ".join(sorted([*chosen, *limits]))
            raise ValueError(
                f"at {where}: {both} together are not supported: say it in one pattern"
            )
        if "format" in given:
            if given["format"] not in FORMATS:
                raise ValueError(
                    f"at {where}: the format {given['format']!r} is not supported, only "
                    f"{', '.join(FORMATS)}"
                )
            inner = parse(FORMATS[given["format"]])
        elif "pattern" in given:
            if not isinstance(given["pattern"], str):
                raise ValueError(f"at {where}: a pattern is a text, got {given['pattern']!r}")
            try:
                inner = parse_pattern(given["pattern"], _in_json, Repeat(CHARACTER, 0, None))
            except ValueError as error:
                raise ValueError(f"at {where}: {error}") from None
        else:
            low, high = self.limits(given, "minLength", "maxLength", where)
            inner = Repeat(CHARACTER, low, high)
        return Row((literal('"'), inner, literal('"')))

    def limits(
        self, given: Mapping[str, Any], first: str, second: str, where: str
    ) -> tuple[int, int | None]:
        low, high = given.get(first, 0), given.get(second)
        for key, value in ((first, low), (second, high)):
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"at {where}: {key} counts, got {value!r}")
        if high is not None and high < low:
            raise ValueError(
                f"at {where}: no value satisfies the constraint: {first} {low}, {second} {high}"
            )
        return low, high

    def integer_(self, given: Mapping[str, Any], where: str) -> Node:
        return INTEGER

    def number_(self, given: Mapping[str, Any], where: str) -> Node:
        return NUMBER

    def boolean_(self, given: Mapping[str, Any], where: str) -> Node:
        return Choice((literal("true"), literal("false")))

    def null_(self, given: Mapping[str, Any], where: str) -> Node:
        return literal("null")

    def array_(self, given: Mapping[str, Any], where: str) -> Node:
        low, high = self.limits(given, "minItems", "maxItems", where)
        item = self.read(given.get("items", True), f"{where}/items")
        return self.listed("[", item, low, high, "]")

    def object_(self, given: Mapping[str, Any], where: str) -> Node:
        properties = given.get("properties", {})
        required: Sequence[str] = given.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
            raise ValueError(f"at {where}: properties are an object, and required is a list")
        for name in (*properties, *required):
            if not isinstance(name, str):
                raise ValueError(f"at {where}: the name of a property is a text, got {name!r}")
        if given.get("additionalProperties", False) not in (False, True):
            raise ValueError(f"at {where}: a schema for additionalProperties is not supported")
        absent = [name for name in required if name not in properties]
        if absent:
            raise ValueError(
                f"at {where}: {absent[0]!r} is required, and no property says what it is"
            )
        if not properties:
            if "properties" in given or given.get("additionalProperties") is False:
                return Row((literal("{"), self.blank, literal("}")))
            member = Row((self.string_({}, where), self.colon, self.anything()))
            return self.listed("{", member, 0, None, "}")
        members = [
            Row(
                (
                    literal(json.dumps(name, ensure_ascii=False)),
                    self.colon,
                    self.read(value, f"{where}/properties/{name}"),
                )
            )
            for name, value in properties.items()
        ]
        inner = self.members(members, [name in required for name in properties])
        return Row((literal("{"), self.blank, inner, self.blank, literal("}")))

    def members(self, members: Sequence[Node], needed: Sequence[bool]) -> Node:
        """Members in their order, some of which may be left out, with commas between."""
        # Whichever comes first has no comma before it: one option for each candidate.
        options = []
        for first in range(len(members)):
            parts: list[Node] = [members[first]]
            for member, must in zip(members[first + 1 :], needed[first + 1 :], strict=True):
                parts.append(Repeat(Row((self.comma, member)), int(must), 1))
            options.append(Row(tuple(parts)))
            if needed[first]:
                break
        some = options[0] if len(options) == 1 else Choice(tuple(options))
        return some if any(needed) else Repeat(some, 0, 1)


def _in_json(ranges: Ranges) -> Node:
    """A set of characters as they are written within a JSON string."""
    inside = [(max(a, c), min(b, d)) for a, b in ranges for c, d in PLAIN if max(a, c) <= min(b, d)]
    options: list[Node] = [Chars(tidy(inside))] if inside else []
    short = {34: '\\"', 92: "\\\\", 8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}
    for code in (*range(32), 34, 92):
        if any(a <= code <= b for a, b in ranges):
            options.append(literal(short.get(code, f"\\u{code:04x}")))
    return options[0] if len(options) == 1 else Choice(tuple(options))


def _is(value: Any, kinds: Sequence[str]) -> bool:
    """Whether a value has one of some types of JSON."""
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return any(
        {
            "object": isinstance(value, Mapping),
            "array": isinstance(value, list),
            "string": isinstance(value, str),
            "integer": whole and (isinstance(value, int) or value.is_integer()),
            "number": whole,
            "boolean": isinstance(value, bool),
            "null": value is None,
        }[kind]
        for kind in kinds
    )
