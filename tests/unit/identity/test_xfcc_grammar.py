from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity import xfcc_grammar
from sidecar.identity.xfcc_grammar import Element, XfccError
from tests.unit.identity.kit import fuzz


def parse(header: str | bytes, bytes_max: int = 4096, elements_max: int = 4) -> tuple[Element, ...]:
    raw = header.encode() if isinstance(header, str) else header
    return xfcc_grammar.parse(raw, bytes_max=bytes_max, elements_max=elements_max)


E = Element

GOOD = [
    # the examples of Envoy's documentation
    (
        "By=http://frontend.lyft.com;Hash=468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688;"
        'Subject="/C=US/ST=CA/L=San Francisco/OU=Lyft/CN=Test Client";URI=http://testclient.lyft.com',
        (
            E(
                by=("http://frontend.lyft.com",),
                hash="468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688",
                subject="/C=US/ST=CA/L=San Francisco/OU=Lyft/CN=Test Client",
                uri=("http://testclient.lyft.com",),
            ),
        ),
    ),
    (
        "By=http://frontend.lyft.com;Hash=468e;URI=http://testclient.lyft.com,"
        "By=http://backend.lyft.com;Hash=9ba6;URI=http://frontend.lyft.com",
        (
            E(by=("http://frontend.lyft.com",), hash="468e", uri=("http://testclient.lyft.com",)),
            E(by=("http://backend.lyft.com",), hash="9ba6", uri=("http://frontend.lyft.com",)),
        ),
    ),
    (
        "By=spiffe://a;By=spiffe://b;Hash=1;DNS=lyft.com;DNS=www.lyft.com",
        (E(by=("spiffe://a", "spiffe://b"), hash="1", dns=("lyft.com", "www.lyft.com")),),
    ),
    # two fields, joined by the proxy
    ("Hash=1, Hash=2", (E(hash="1"), E(hash="2"))),
    ("Hash=1 ;\tHash2=x , Hash=2 ", (E(hash="1"), E(hash="2"))),
    ('hash=1;SUBJECT="CN=x"', (E(hash="1", subject="CN=x"),)),
    ("URI=", (E(uri=("",)),)),
    ("URI=https://x?a=b", (E(uri=("https://x?a=b",)),)),
    ('URI="a,b;c=d"', (E(uri=("a,b;c=d",)),)),
    (r'URI="a\"b"', (E(uri=('a"b',)),)),
    ('Subject=""', (E(subject=""),)),
    (r'Subject="O=a\, b;c\"d\\"', (E(subject=r"O=a\, b;c\"d\\"),)),
    ('Cert="-----BEGIN%20CERTIFICATE";Chain="x"', (E(cert="-----BEGIN%20CERTIFICATE", chain="x"),)),
    ("Tomorrow=new;Hash=1", (E(hash="1"),)),
    ('Subject="CN=é"', (E(subject="CN=é"),)),
]


@pytest.mark.parametrize(("header", "elements"), GOOD)
def test_a_header_is_read(header: str, elements: tuple[Element, ...]) -> None:
    assert parse(header) == elements


BAD: list[tuple[str | bytes, str]] = [
    ("", "no key and equals sign at 0"),
    ("Hash", "no key"),
    ("=x", "no key"),
    ("Hash=1,", "no key and equals sign at 7"),
    (",Hash=1", "no key"),
    ("Hash=1;;URI=x", "no key"),
    ("Ha sh=1", "no key"),
    ('Subject="CN=x', "does not end well"),
    (r'Subject="CN=x\"', "does not end well"),
    ('Subject="CN=x"y', "does not end well"),
    ('Subject="a\x01"', "does not end well"),
    ('URI=a"b"', "needs quotes"),
    ("URI=a\x00", "needs quotes"),
    ("Subject=CN=x", "subject without quotes"),
    ("Cert=abc", "cert without quotes"),
    ("Subject=", "subject without quotes"),
    ('Subject="CN=a";Subject="CN=b"', "second subject"),
    ("Hash=1;hash=2", "second hash"),
    ('Cert="a";cert="a"', "second cert"),
    (b"URI=\xff", "not UTF-8"),
    ("URI=" + "x" * 4093, "longer than 4096"),
    (",".join(["Hash=1"] * 5), "more than 4 elements"),
    (";".join(["DNS=x"] * 65), "more than 64 pairs"),
]


@pytest.mark.parametrize(("header", "reason"), BAD, ids=[f"{r} {n}" for n, (_, r) in enumerate(BAD)])
def test_what_envoy_never_writes_is_refused(header: str | bytes, reason: str) -> None:
    with pytest.raises(XfccError) as caught:
        parse(header)
    assert reason in str(caught.value)


def test_a_uri_of_the_callers_certificate_cannot_pass_for_a_subject_or_an_element_with_one() -> None:
    """Envoy writes URI without quotes, so what a CA lets into a URI is all that protects the header."""
    for uri in ("https://x;Subject=2.5.4.97=PSDGB-FCA-1", "https://x,Hash=1;Subject=2.5.4.97=PSDGB-FCA-1"):
        with pytest.raises(XfccError, match="without quotes"):
            parse(f"Hash=2;URI={uri}")


@fuzz
@given(st.binary(max_size=200) | st.text(alphabet='HashSubjectURI=";,\\ a\t', max_size=80).map(str.encode))
def test_no_bytes_at_all_make_the_parser_raise_anything_else(header: bytes) -> None:
    try:
        elements = parse(header)
    except XfccError:
        return
    assert 1 <= len(elements) <= 4


@fuzz
@given(st.lists(st.sampled_from(['Subject="', '"', "\\", ";", ",", "Hash=1", "x", '\\"', "="]), max_size=40))
def test_no_mixture_of_its_own_marks_makes_the_parser_raise_anything_else(marks: list[str]) -> None:
    try:
        elements = parse("".join(marks))
    except XfccError:
        return
    assert elements


VALUES = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\"), max_size=20)
SUBJECTS = st.lists(VALUES.map(lambda t: t.replace('"', "")) | st.sampled_from(['\\"', "\\\\", "\\,"])).map("".join)
ELEMENTS = st.builds(
    Element,
    by=st.lists(VALUES, max_size=2).map(tuple),
    hash=st.none() | VALUES,
    cert=st.none() | VALUES,
    chain=st.none() | VALUES,
    subject=st.none() | SUBJECTS,
    uri=st.lists(VALUES, max_size=2).map(tuple),
    dns=st.lists(VALUES, max_size=2).map(tuple),
).filter(lambda e: e != Element())


def write(element: Element) -> str:
    """In Envoy's order: what a certificate can say at will comes last."""

    def quoted(key: str, value: str) -> str:
        return f'{key}="{value.replace(chr(34), chr(92) + chr(34))}"'

    parts = [quoted("By", value) for value in element.by]
    parts += [quoted(key, value) for key in ("hash", "cert", "chain") if (value := getattr(element, key)) is not None]
    if element.subject is not None:
        parts.append(f'Subject="{element.subject}"')
    parts += [quoted("URI", value) for value in element.uri] + [quoted("DNS", value) for value in element.dns]
    return ";".join(parts)


@fuzz
@given(st.lists(ELEMENTS, min_size=1, max_size=4))
def test_every_header_that_is_written_is_read_again(elements: list[Element]) -> None:
    assert parse(",".join(map(write, elements)), bytes_max=100_000) == tuple(elements)
