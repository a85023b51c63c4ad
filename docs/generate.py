"""What these pages take from the program: a line `<!-- generated: NAME -->` becomes what the code says by now.

MkDocs calls `on_page_markdown` (mkdocs.yml, `hooks`). An unknown NAME stops the build.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
Schema = Mapping[str, Any]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with everything generated in its place. Raises KeyError for a name that nobody generates."""
    return MARK.sub(lambda found: GENERATED[found[1]](), markdown)


def experiment() -> str:
    """Every field of a configuration, from the JSON schema that editors use."""
    from medae.experiment import Experiment

    return "\n".join(_object(Experiment.model_json_schema()))


def service_settings() -> str:
    """Every field of service.yaml."""
    from medae_service.settings import ServiceSettings

    return "\n".join(_table(ServiceSettings.model_json_schema()["properties"]))


def limits() -> str:
    """What an image may declare."""
    from medae.io.guard import Limits

    return "\n".join(_table(Limits.model_json_schema()["properties"]))


def routes() -> str:
    """Every route, from the OpenAPI document that the service itself answers."""
    from medae_service.description import openapi

    document = openapi()
    return "\n".join(
        line
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for line in _operation(document, path, method, operation)
    )


def problems() -> str:
    """Every code of a problem, its status and its meaning."""
    from medae_service.problems import CODES

    rows = [f"| {code.status} | `{name}` | {_cell(code.meaning)} |" for name, code in CODES.items()]
    return "\n".join(["| status | code | meaning |", "|---|---|---|", *rows])


def commands() -> str:
    """Every command and option, as --help says them."""
    from typer.main import get_command

    from medae.cli import app

    return "\n".join(_commands(get_command(app), "medae"))


GENERATED: Mapping[str, Callable[[], str]] = {
    "experiment": experiment,
    "service-settings": service_settings,
    "limits": limits,
    "routes": routes,
    "problems": problems,
    "commands": commands,
}


def _object(schema: Schema) -> Iterator[str]:
    """A settings type, then those that it names."""
    definitions = schema.get("$defs", {})
    yield from _table(schema["properties"], definitions)
    for name, definition in definitions.items():
        if "properties" not in definition:
            continue
        yield f"\n### {_called(name, definition)} {{#{name.lower()}}}\n"
        if "description" in definition:
            yield definition["description"] + "\n"
        own = {field: says for field, says in definition["properties"].items() if field != "kind"}
        yield from _table(own, definitions)


def _called(name: str, definition: Schema) -> str:
    """kind: unet, or the type's name in words: TrainingSettings -> training."""
    kind = definition["properties"].get("kind", {}).get("const")
    if kind is not None:
        return f"`kind: {kind}`"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.removesuffix("Settings")).lower()


def _table(properties: Mapping[str, Schema], definitions: Schema = MappingProxyType({})) -> Iterator[str]:
    """A row a field; types that `definitions` has are links to their own tables."""
    if not properties:
        yield "No settings.\n"
        return
    yield "| field | takes | default | meaning |\n|---|---|---|---|"
    for name, schema in properties.items():
        takes, meaning = _type(schema, definitions), schema.get("description", "")
        yield f"| `{name}` | {_cell(takes)} | {_cell(_default(schema))} | {_cell(meaning)} |"


def _default(schema: Schema) -> str:
    if "default" not in schema:
        return "needed"
    value = schema["default"]
    if value is None:
        return "none"
    return "its own defaults" if isinstance(value, dict) else f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(schema: Schema, definitions: Schema) -> str:
    """What a field takes, in words; other types as links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{_called(name, definitions[name])}](#{name.lower()})" if name in definitions else name.lower()
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    for several in ("oneOf", "anyOf"):
        if several in schema:
            kinds = [_type(one, definitions) for one in schema[several] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if schema.get("type") == "array":
        return _list(schema, definitions)
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"names with {_type(schema['additionalProperties'], definitions)}"
    words = {"path": "path"}.get(schema.get("format", ""), schema.get("type", "anything"))
    return words + "".join(
        f" {sign} {schema[bound]:g}"
        for bound, sign in (("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<="))
        if bound in schema
    )


def _list(schema: Schema, definitions: Schema) -> str:
    if "prefixItems" in schema:
        kinds = list(dict.fromkeys(_type(one, definitions) for one in schema["prefixItems"]))
        return f"[{len(schema['prefixItems'])} x {' or '.join(kinds)}]"
    return f"list of {_type(schema.get('items', {}), definitions)}"


def _operation(document: Schema, path: str, method: str, operation: Schema) -> Iterator[str]:
    yield f"\n### {method.upper()} {path}\n"
    yield operation["summary"] + ".\n"
    if operation.get("description"):
        yield operation["description"] + "\n"
    parameters = [_resolved(document, parameter) for parameter in operation.get("parameters", [])]
    if parameters:
        yield "| parameter | in | takes | meaning |\n|---|---|---|---|"
        for parameter in parameters:
            schema = _resolved(document, parameter.get("schema", {}))
            meaning = parameter.get("description", schema.get("description", ""))
            yield f"| `{parameter['name']}` | {parameter['in']} | {_cell(_type(schema, {}))} | {_cell(meaning)} |"
        yield ""
    answers = {status: _resolved(document, answer) for status, answer in operation["responses"].items()}
    for status, answer in answers.items():
        if status.startswith("2"):
            kinds = ", ".join(f"`{kind}`" for kind in answer.get("content", {}))
            yield f"**{status}**: {answer['description']}" + (f" ({kinds})" if kinds else "") + ".\n"
    refused = ", ".join(status for status in answers if not status.startswith("2"))
    if refused:
        yield f"Refused with {refused}: [problems](troubleshooting.md#what-the-service-answers).\n"


def _resolved(document: Schema, node: Schema) -> Schema:
    while "$ref" in node:
        found: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/")]
        node = found
    return node


def _commands(command: Any, name: str) -> Iterator[str]:
    for child in command.commands.values():
        if child.hidden:
            continue
        called = f"{name} {child.name}"
        if hasattr(child, "commands"):
            yield from _commands(child, called)
            continue
        arguments = [one for one in child.params if one.param_type_name == "argument"]
        usage = " ".join([called, *(_usage(one) for one in arguments)])
        yield f"\n### {called}\n\n`{usage}`\n\n{child.help}\n"
        options = [one for one in child.params if one.param_type_name == "option" and not one.hidden]
        if options:
            yield "| option | meaning |\n|---|---|"
            for one in options:
                yield f"| `{', '.join([*one.opts, *one.secondary_opts])}` | {_cell(one.help or '')} |"


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).removesuffix("...")
    several = "..." if argument.nargs == -1 else ""
    return f"{name}{several}" if argument.required or name.startswith("[") else f"[{name}]{several}"


def _cell(text: str) -> str:
    """In a table a bar ends the cell, and so does a line."""
    return " ".join(text.split()).replace("|", "\\|")
