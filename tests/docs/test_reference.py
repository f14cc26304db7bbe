"""Tables of the documentation have what the program has: keys in Valkey, paths of the admin side, tests."""

from __future__ import annotations

import inspect
import re

import pytest

from sidecar.app import admin_endpoints, admin_web, health_endpoints
from sidecar.ledger.keys import Keys
from tests.docs.blocks import ROOT, pages

SAMPLES = {
    "account": "ID",
    "partition": 0,
    "instance": "ID",
    "hour": 1,
    "name": "ID",
    "scope": b"x",
    "sha256": b"x" * 32,
    "first": 0,
}


def key_names() -> list[str]:
    """The part of each key that says what it is, between the partition's tag and what belongs to one account."""
    keys = Keys()
    found = []
    for name, method in inspect.getmembers(keys, inspect.ismethod):
        if not name.startswith("_") and name not in ("partition", "first_format"):
            key = method(*(SAMPLES[parameter] for parameter in inspect.signature(method).parameters))
            found.append(key.split("}:")[1].split(":")[0])
    return sorted(set(found))


@pytest.mark.parametrize("name", key_names())
def test_every_key_in_valkey_is_explained(name: str) -> None:
    table = (ROOT / "docs" / "ledger.md").read_text()
    assert re.search(rf"^\| `qs:v2:{{p(?:NN|00)}}:{name}(?::<[^>]+>)?` \|", table, re.MULTILINE)


@pytest.mark.parametrize("module", [admin_endpoints, admin_web, health_endpoints])
def test_every_path_of_admin_side_and_health_port_is_in_the_table(module: object) -> None:
    paths = set(
        re.findall(r'"(/(?:v1/\w+|livez|readyz|metrics|drained|app/|webhooks/lago))"', inspect.getsource(module))
    )
    page = (ROOT / "docs" / "admin.md").read_text()
    assert paths
    assert not {path for path in paths if f"`{path.rstrip('/')}" not in page}


def test_every_test_that_a_page_names_exists() -> None:
    """A rule is as good as the test that shows it."""
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in (path.name, *re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
    }
    named = {name for page in pages() for name in re.findall(r"\btest_\w+(?:\.py)?", (ROOT / page).read_text())}
    assert named
    assert named <= defined


def test_the_rules_of_charging_refer_to_rules_that_exist() -> None:
    page = (ROOT / "docs" / "charging.md").read_text()
    text, _, _ = page.partition("## 9. Tests")
    rules = re.findall(r"^(?:\* \*\*|\| )(\d\.\d+)(?:\*\*| \|)", text, re.MULTILINE)
    assert rules
    assert len(set(rules)) == len(rules)
    assert set(re.findall(r"(?<![\d.,])[1-8]\.\d{1,2}(?![\d.%])", page)) <= set(rules)
