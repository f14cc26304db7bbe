from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from sidecar.identity import dn
from sidecar.identity.dn import Attribute, DnError
from tests.unit.identity.kit import fuzz

A = Attribute

GOOD = [
    ("", ()),
    ("   ", ()),
    ("CN=x", ((A("cn", "x"),),)),
    ("CN=", ((A("cn", ""),),)),
    ("CN=,O=", ((A("cn", ""),), (A("o", ""),))),
    ("cn=x,O=y", ((A("cn", "x"),), (A("o", "y"),))),
    (" CN = x , O = y ", ((A("cn", "x"),), (A("o", "y"),))),
    ("CN=x+O=y,C=GB", ((A("cn", "x"), A("o", "y")), (A("c", "GB"),))),
    ("2.5.4.97=PSDGB-FCA-123456", ((A("2.5.4.97", "PSDGB-FCA-123456"),),)),
    ("OID.2.5.4.97=x", ((A("2.5.4.97", "x"),),)),
    ("oid.2.5.4.97=x", ((A("2.5.4.97", "x"),),)),
    ("organizationIdentifier=x", ((A("organizationidentifier", "x"),),)),
    (r"O=a\, b\+c\"d\\e\<f\>g\;h\=i", ((A("o", 'a, b+c"d\\e<f>g;h=i'),),)),
    (r"O=\#1", ((A("o", "#1"),),)),
    (r"O=\ a\ ", ((A("o", " a "),),)),
    (r"O=\20a\20", ((A("o", " a "),),)),
    (r"O=a   \ ", ((A("o", "a    "),),)),
    (r"O=a=b", ((A("o", "a=b"),),)),
    (r"CN=Lu\C4\8Di\C4\87", ((A("cn", "Lučić"),),)),
    ("CN=Lučić", ((A("cn", "Lučić"),),)),
    ("O=a#b", ((A("o", "a#b"),),)),
    ("2.5.4.97=#0C0141", ((A("2.5.4.97", "A"),),)),
    ("2.5.4.97=#0c03c3a941,CN=x", ((A("2.5.4.97", "éA"),), (A("cn", "x"),))),
    ("2.5.4.97=#13024142 , CN=x", ((A("2.5.4.97", "AB"),), (A("cn", "x"),))),
    ("2.5.4.97=#1e0400410042", ((A("2.5.4.97", "AB"),),)),
    ("2.5.4.97=#160141", ((A("2.5.4.97", "A"),),)),
    ("2.5.4.97=#0c810141", ((A("2.5.4.97", "A"),),)),
    ("1.3.6.1=#0203010001", ((A("1.3.6.1", b"\x02\x03\x01\x00\x01"),),)),
]


@pytest.mark.parametrize(("text", "name"), GOOD)
def test_a_distinguished_name_is_read(text: str, name: dn.Name) -> None:
    assert dn.parse(text) == name


BAD = [
    ("x", "no attribute type at 0"),
    ("=x", "no attribute type at 0"),
    ("CN=x,", "no attribute type at 5"),
    (",CN=x", "no attribute type at 0"),
    ("CN=x,,O=y", "no attribute type at 5"),
    ("CN=x+", "no attribute type at 5"),
    ("2.=x", "no attribute type at 0"),
    ("2=x", "no attribute type at 0"),
    ("C N=x", "no attribute type at 0"),
    ("ﬁ=x", "no attribute type at 0"),
    ("CN=x;O=y", "must be escaped at 4"),
    ('CN="x"', "must be escaped at 3"),
    ("CN=a<b", "must be escaped at 4"),
    ("CN=a\x00", "must be escaped at 4"),
    ("CN=a\\", "escapes nothing at 4"),
    (r"CN=a\x", "escapes nothing at 4"),
    (r"CN=a\4", "escapes nothing at 4"),
    (r"CN=\C4", "no UTF-8"),
    (r"CN=\C4a\8D", "no UTF-8"),
    ("CN=\ud800", "surrogate"),
    ("CN=#", "hexadecimal"),
    ("CN=#0", "hexadecimal"),
    ("CN=#0c0141zz", "hexadecimal"),
    ("CN=#0c", "not one DER value"),
    ("CN=#0c0241", "not one DER value"),
    ("CN=#0c014141", "not one DER value"),
    ("CN=#0c80", "not one DER value"),
    ("CN=#0c8400000001", "not one DER value"),
    ("CN=#0c01ff", "DER tag"),
    ("CN=#1301e9", "DER tag"),
    ("CN=#1e0141", "DER tag"),
    ("O=" + "x" * 8191, "longer than 8192"),
    (",".join(["O=x"] * 65), "more than 64"),
]


@pytest.mark.parametrize(("text", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_what_is_no_distinguished_name_is_refused_with_the_place(text: str, reason: str) -> None:
    with pytest.raises(DnError) as caught:
        dn.parse(text)
    assert reason in str(caught.value)


def test_values_are_found_by_any_name_of_their_type_and_in_any_position() -> None:
    name = dn.parse("CN=a+2.5.4.97=b,ORGANIZATIONIDENTIFIER=c,O=d")
    assert dn.values_of(name, "2.5.4.97", "organizationIdentifier") == ("b", "c")


@fuzz
@given(st.text(max_size=200) | st.text(alphabet='CNO=,+\\#";. 0c2541', max_size=60))
def test_no_text_at_all_makes_the_parser_raise_anything_else(text: str) -> None:
    try:
        name = dn.parse(text)
    except DnError:
        return
    assert all(attribute.type for relative in name for attribute in relative)


def write(name: dn.Name) -> str:
    """RFC 4514 section 2, written apart from the parser."""
    return ",".join("+".join(f"{a.type}={write_value(a.value)}" for a in relative) for relative in name)


def write_value(value: str | bytes) -> str:
    if isinstance(value, bytes):
        return "#" + value.hex()
    escaped = ["\\" + c if c in '"+,;<>\\' else c for c in value]
    if escaped and escaped[-1] == " ":
        escaped[-1] = "\\ "
    if escaped and escaped[0] in " #":
        escaped[0] = "\\" + escaped[0]
    return "".join(escaped).replace("\x00", "\\00")


TYPES = st.from_regex(r"[a-z][a-z0-9-]{0,8}|[0-2](\.[1-9][0-9]{0,3}){1,4}", fullmatch=True)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
OCTETS = st.binary(max_size=100).map(lambda content: bytes([0x04, len(content)]) + content)
ATTRIBUTES = st.builds(Attribute, TYPES, TEXTS | TEXTS.map(lambda t: f" #{t}\\ ") | OCTETS)
NAMES = st.lists(st.lists(ATTRIBUTES, min_size=1, max_size=3).map(tuple), max_size=5).map(tuple)


@fuzz
@given(NAMES)
def test_every_name_that_is_written_is_read_again(name: dn.Name) -> None:
    assert dn.parse(write(name)) == name


@fuzz
@given(st.lists(st.tuples(st.sampled_from([NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME]), TEXTS.filter(bool))))
def test_names_written_by_another_library_are_read(pairs: list[tuple[x509.ObjectIdentifier, str]]) -> None:
    theirs = x509.Name([x509.NameAttribute(oid, text[:64], _validate=False) for oid, text in pairs])
    ours = dn.parse(theirs.rfc4514_string())
    assert [value for relative in reversed(ours) for value in [relative[0].value]] == [t[:64] for _, t in pairs]
