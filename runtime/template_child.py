"""The child process of `runtime.template_process`, which renders one chat template for each line of input.

It imports nothing but Jinja, so that it starts in a tenth of a second and needs 20 MB. The environment
provides what templates of the Hugging Face layout expect, and is Jinja's immutable sandbox: templates get no
underscored attributes and cannot change their variables. Importing the library's own renderer would take
seconds; tests compare the two, character for character.
"""

import contextlib
import datetime
import json
import resource
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from runtime.reward_pipe import serve

MEMORY_BYTES = 512 << 20
"""Limit of the address space, which Linux enforces and macOS does not."""
LARGEST_PRODUCT = 1 << 24
"""Largest number of characters of a repeated text, of items of a repeated list, or of bits of a power."""
LONGEST_REASON = 200


def main() -> None:
    """Answers requests until the pipe closes."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (0, 0))
    compiled: dict[int, Any] = {}
    environment = Sandbox()
    serve(lambda line: json.dumps(_answer(environment, compiled, json.loads(line))).encode())


class PlainNamespace(Namespace):
    """A namespace whose attributes have no leading underscore."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = dict(*args, **kwargs)
        for name in given:
            _check_name(name)
        super().__init__(given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class Generation(Extension):
    """The tag ``{% generation %}``, which marks an assistant's message and has no effect here."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        """Returns the statements up to ``{% endgeneration %}``, in a scope of their own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment in which a template runs."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        self.filters["tojson"] = _to_json
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": _now,
            "namespace": PlainNamespace,
        }

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Returns a product or power. Raises SecurityError for one that would fill the memory."""
        if operator == "*":
            size = max(_extent(left) * _number(right), _extent(right) * _number(left))
        else:
            size = _number(left).bit_length() * _number(right)
        if size > LARGEST_PRODUCT:
            raise SecurityError(f"a product of {size:,} items")
        return super().call_binop(context, operator, left, right)


def _answer(environment: Sandbox, compiled: dict[int, Any], request: dict[str, Any]) -> Any:
    """Returns the prompt as {"text"}, or {"refused"} with the reason."""
    number, limit = request["number"], request["limit"]
    try:
        if request["template"] is not None:
            compiled[number] = None
            compiled[number] = environment.from_string(request["template"])
        if compiled[number] is None:
            return {"refused": "does not compile"}
        pieces, size = [], 0
        variables = {"tools": None, "documents": None, **request["variables"]}
        for piece in compiled[number].generate(**variables):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                return {"refused": f"printed more than {limit:,} characters"}
        return {"text": "".join(pieces)}
    except BaseException as error:  # a template is an untrusted program and can raise anything
        return {"refused": f"raised {_line(error)}"}


def _line(error: BaseException) -> str:
    """Returns type and text of an error on one printable line."""
    try:
        text = str(error)[:LONGEST_REASON]
    except Exception:
        text = ""
    plain = "".join(c if c.isprintable() else " " for c in text).strip()
    kind = type(error).__name__
    return f"{kind}: {plain}" if plain else kind


def _extent(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Returns plain JSON, without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


if __name__ == "__main__":
    main()
