"""The description of the interface as one plain page: no script, nothing fetched, so that it reads the same anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330;
  background: #fff }
h2 { font: 600 1.05rem ui-monospace, monospace; margin: 2.2rem 0 .2rem; border-top: 1px solid #d5dae2; padding-top: 1rem;
  overflow-wrap: anywhere }
h2 b { display: inline-block; min-width: 4.2rem; color: #175fa8 } h3 { font-size: .95rem; margin: 1rem 0 .2rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem } td { padding: .2rem .8rem .2rem 0; vertical-align: top }
td:first-child { font-family: ui-monospace, monospace; white-space: nowrap } tr { border-bottom: 1px solid #eef0f4 }
code { font-family: ui-monospace, monospace } small { color: #5a6576 }
@media (prefers-color-scheme: dark) { body { color: #e3e7ee; background: #14181f } h2 { border-color: #333b48 }
  h2 b { color: #78b4f0 } tr { border-color: #262d38 } small { color: #9aa5b6 } }
"""


def docs_page(description: dict[str, Any]) -> str:
    """HTML of an OpenAPI description."""
    title, version, words = (escape(description["info"].get(key, "")) for key in ("title", "version", "description"))
    parts = [f"<h1>{title} {version}</h1><p>{words} The same as <a href=openapi.json>openapi.json</a>.</p>"]
    schemas = description.get("components", {}).get("schemas", {})
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation, schemas))
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style>"
    )
    return head + "".join(parts)


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    lock = " <small>needs the token</small>" if operation.get("security") else ""
    parts = [f"<h2><b>{method.upper()}</b> {escape(path)}{lock}</h2><p>{escape(operation.get('description', ''))}</p>"]
    rows = [(p["name"], _kind(p["schema"]), p["in"], p.get("description", "")) for p in operation.get("parameters", [])]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        rows += [
            (
                name,
                _kind(field),
                "required" if name in schema.get("required", ()) else _default(field),
                field.get("description", ""),
            )
            for name, field in schema["properties"].items()
        ]
    parts.append(_table("Fields", rows))
    answered = []
    for code, answer in operation["responses"].items():
        kinds = [
            _kind(content.get("schema", {}), schemas) or kind for kind, content in answer.get("content", {}).items()
        ]
        answered.append((code, answer["description"], " or ".join(kinds)))
    parts.append(_table("Answers", answered))
    return "".join(parts)


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h3>{title}</h3><table>{lines}</table>"


def _default(field: dict[str, Any]) -> str:
    return "" if field.get("default") is None else f"default {json.dumps(field['default'])}".replace('"', "")


def _kind(schema: dict[str, Any], schemas: dict[str, Any] | None = None) -> str:
    """A schema in few words: type, limits, choices; of a named one its fields."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        fields = (schemas or {}).get(name, {}).get("properties", {})
        return "{" + ", ".join(fields) + "}" if fields else name
    if "anyOf" in schema:
        return " or ".join(kind for part in schema["anyOf"] if (kind := _kind(part, schemas)) != "null")
    if "enum" in schema or "const" in schema:
        return " or ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    kind = "file" if schema.get("format") == "binary" else str(schema.get("type", ""))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{kind}, {low:g} to {high:g}"
    return kind if low is None else f"{kind} from {low:g}"
