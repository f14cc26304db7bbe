"""Writes docs/configuration.md: ``python -m sidecar.app.configuration_reference > docs/configuration.md``."""

from __future__ import annotations

import sys

from sidecar.app.schema_rows import SchemaRow, schema_rows

_INTRODUCTION = """\
# Configuration

Made by `python -m sidecar.app.configuration_reference` from the models in `sidecar/`; change it there.

One YAML file, given with `-c`. The smallest one that works:

```yaml
upstream: {url: "http://127.0.0.1:8000"}
valkey: embedded:///var/lib/quota-sidecar
```

* **Environment.** Every key can be set, and a key of the file overridden, by a variable: `SIDECAR_`, then the key in
  capitals, two underscores for each level: `SIDECAR_UPSTREAM__CONNECT_TIMEOUT_MS=500`. A number leads into a list
  (`SIDECAR_ROUTES__0__UNITS=2`); whole lists and mappings are written as YAML or JSON. An empty variable counts as not
  set, `null` clears a value. `SIDECAR_CONFIG` names the file itself, in place of `-c`.
* **Secrets.** Where a key has a twin that ends in `_file`, the secret can be read from that file; one newline at its
  end is not part of it. Errors and logs never show secrets.
* **YAML** is read by version 1.2's rules: `on`, `off`, `yes`, `no` and `12:30` are text. Anchors and aliases work; tags
  and merge keys (`<<`) are refused.
* **Mistakes** are reported together, each with its place:
  `gateway.yaml:14: upstream.connect_timeout_ms: should be a whole number, not 'fast'`. Unknown and repeated keys are
  mistakes.
* Relative paths start from the working directory. Names end in their unit: `_ms`, `_s`, `_bytes`.
* In the tables `routes[]` stands for each entry of a list, `identity[jwt]` for one whose `type` is `jwt`, `<name>` for
  names that are yours to give.
"""


def render() -> str:
    """The document's text."""
    parts = [_INTRODUCTION]
    plain: list[SchemaRow] = []
    sections: dict[str, list[SchemaRow]] = {}
    for row in schema_rows():
        root = row.path.split(".")[0].split("[")[0]
        sections.setdefault(root, []).append(row)
    for name in [name for name, rows in sections.items() if len(rows) == 1]:
        plain += sections.pop(name)
    parts.append("## Keys outside of sections\n\n" + _table(plain))
    for name, rows in sections.items():
        head, *rest = rows
        about = head.description + (f" Default: `{head.default}`." if head.default else "")
        parts.append(f"## {name}\n\n{about}\n\n" + _table(rest))
    return "\n".join(parts)


def _table(rows: list[SchemaRow]) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for row in rows:
        default = row.default if row.default in ("", "required") else f"`{row.default}`"
        cells = [f"`{row.path}`", row.type, default, row.description]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
