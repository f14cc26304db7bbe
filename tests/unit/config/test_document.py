"""YAML read with positions and limits."""

from __future__ import annotations

from decimal import Decimal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import document
from sidecar.config.document import compose
from sidecar.config.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("'true'", "true"),
        ("!!str true", "true"),
        ("null", None),
        ("~", None),
        ("0017", 17),
        ("0x1F", 31),
        ("0o17", 15),
        ("-5", -5),
        ("1_000", "1_000"),
        ("0.1", Decimal("0.1")),
        ("1.", Decimal("1")),
        (".5", Decimal("0.5")),
        ("1e3", Decimal("1e3")),
        ("0.10000000000000000000000000001", Decimal("0.10000000000000000000000000001")),
        ("1e1000", "1e1000"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("9" * 65, "9" * 65),
        ("١٢", "١٢"),
    ],
)
def test_a_plain_word_means_what_yaml_1_2_says(text: str, value: object) -> None:
    data = compose(f"a: {text}", "f").data()

    assert data == {"a": value}
    assert isinstance(data, dict)
    assert type(data["a"]) is type(value)


def test_every_value_knows_the_line_of_its_key() -> None:
    root = compose("a:\n  b: 1\n  c:\n    - x\n    - y: 2\n", "f")

    assert str(root.origin) == "f:1"
    a = root.child("a")
    assert a is not None
    assert str(a.origin) == "f:1"
    c = a.child("c")
    assert c is not None
    assert str(c.origin) == "f:3"
    second = c.child(1)
    assert second is not None
    assert str(second.origin) == "f:5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n---\nb: 2\n", "f:2: has a second document; give one document only"),
        ("a: !!python/name:x\n", "f:1: a: has the tag tag:yaml.org,2002:python/name:x; YAML tags are not allowed"),
        ("a: !env [X]\n", "f:1: a: has the tag !env; YAML tags are not allowed"),
        ("a: &x 1\n<<: *x\n", "f:2: merge keys (<<) are not allowed; use an alias for the whole value"),
        ("a: *x\n", "f:1: a: *x refers to no complete anchor above it"),
        ("a: &x [*x]\n", "f:1: a[0]: *x refers to no complete anchor above it"),
        ("? [a]\n: 1\n", "f:1: has a key that is not text"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "f:4: b.c: is set twice, first in line 3"),
        (b"a: 1\nb: \xff\n", "f:2: is not UTF-8"),
        ("a: " + "[" * 40, "f:1: a[0][0]: is nested deeper than 32 levels"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_with_its_line(text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(text, "f")

    assert str(caught.value) == message


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [\n", "f:3: is not YAML: "),
        ("a: 1\nb: \x07\n", "f:2: is not YAML: "),
        ("a: 1\n\tb: 2\n", "f:2: is indented with a tab: give YAML spaces, not tabs"),
        ("a:\n  b: 1\n  \tc: 2\n", "f:3: is indented with a tab: give YAML spaces, not tabs"),
        ("a: 1\nb: '\t'\nc: [\n", "f:4: is not YAML: "),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(
    text: str, message: str, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "_LOADER", getattr(yaml, loader))

    with pytest.raises(ConfigError) as caught:
        compose(text, "f")

    assert str(caught.value).startswith(message)


def test_an_alias_stands_for_the_whole_value() -> None:
    assert compose("a: &x {p: 1}\nb: *x\n", "f").data() == {"a": {"p": 1}, "b": {"p": 1}}


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert compose(b"\xef\xbb\xbfa: 1", "f").data() == {"a": 1}


def test_a_file_beyond_the_limit_is_not_read() -> None:
    with pytest.raises(ConfigError, match="f:1: is larger than 10 bytes"):
        compose("a: 12345678", "f", bytes_max=10)


def test_aliases_of_aliases_do_not_make_a_billion_values() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )

    with pytest.raises(ConfigError, match=r"holds more than 1000000 values \(aliases count in full\)"):
        compose(bomb, "f")


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_both_parsers_give_the_same_tree(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_LOADER", getattr(yaml, loader))
    text = "a: &x {b: 'c', d: [1, 2.5, \"3\"]}\ne:\n  - *x\n  - |\n    text\n"

    tree = compose(text, "f")

    assert tree.data() == {
        "a": {"b": "c", "d": [1, Decimal("2.5"), "3"]},
        "e": [{"b": "c", "d": [1, Decimal("2.5"), "3"]}, "text\n"],
    }
    e = tree.child("e")
    assert e is not None
    assert e.origin.line == 2


@given(st.text(max_size=200) | st.text(alphabet="{}[]:,-&*!|>'\"#%@` \n\tab01", max_size=60))
def test_no_text_leads_to_anything_but_a_tree_or_an_error(text: str) -> None:
    try:
        source = compose(text, "f").origin.source
    except ConfigError as error:
        source = error.problems[0].origin.source
    assert source == "f"
