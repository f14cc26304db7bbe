"""What Go's url.Parse takes. Every case was given to Go 1.26."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.basics.go_url import GoUrlError, check_go_url

TAKEN = [
    "",
    "*",
    "#",
    "?",
    "/",
    "//",
    "///",
    "///a b",
    "open-banking-api",
    "open banking api",
    "./eu1:prod",
    "/eu1:prod",
    "eu1/gateway: prod",
    "eu1?gateway: 100%",
    "urn:bank:eu1",
    "urn:eu1 gateway: 100%",
    "a+b-c.d1:",
    "mailto:a@b",
    "bank-ü",
    "%C3%BC/%20",
    "https://bank.example/eu1?q=%zz",
    "//bank.example:",
    "https://bank.example:8443",
    "//bank.example:99999999",
    "//ü.example",
    "//%C3%BC.example",
    "//%25.example",
    "//a!$&'()*+,;=<>\"_~-b",
    "//a]b",
    "pg://a:1,b:2",
    "x://a:b:1",
    "//user@h",
    "//user:p%41:q@r@h:1",
    "//@",
    "//[::1]",
    "//[::1]:",
    "HTTP://[fe80::1%25en%200]:80/",
    "//[::ffff:1.2.3.4]",
    "//[1:2:3:4:5:6:7::]",
    "a#b\x01 %41",
]

REFUSED = [
    ("eu1 gateway: prod", "first path segment in URL cannot contain colon"),
    ("100% bank", 'invalid URL escape "% b"'),
    ("100%", 'invalid URL escape "%"'),
    ("a%2", 'invalid URL escape "%2"'),
    ("a%zz", 'invalid URL escape "%zz"'),
    ("/a/%4", 'invalid URL escape "%4"'),
    ("https:/%", 'invalid URL escape "%"'),
    ("a#%4g", 'invalid URL escape "%4g"'),
    ("1:b", "first path segment in URL cannot contain colon"),
    ("a_b:c", "first path segment in URL cannot contain colon"),
    ("ü:c", "first path segment in URL cannot contain colon"),
    (":", "missing protocol scheme"),
    (":eu1", "missing protocol scheme"),
    ("bank\n", "invalid control character in URL"),
    ("\tbank", "invalid control character in URL"),
    ("a:\x00", "invalid control character in URL"),
    ("bank?\x7f", "invalid control character in URL"),
    ("//eu1 gateway", 'invalid character " " in host name'),
    ("https://a\\b", 'invalid character "\\" in host name'),
    ("//a|b", 'invalid character "|" in host name'),
    ("//%41", 'invalid URL escape "%41"'),
    ("//a%", 'invalid URL escape "%"'),
    ("//h:8x", 'invalid port ":8x" after host'),
    ("//h:٣", 'invalid port ":٣" after host'),
    ("https://a:1:2", 'invalid port ":1:2" after host'),
    ("HTTP://a:b:1", 'invalid port ":b:1" after host'),
    ("x://a:1:b", 'invalid port ":b" after host'),
    ("//us er@h", "invalid userinfo"),
    ("//ü@h", "invalid userinfo"),
    ("//u[@h", "invalid userinfo"),
    ("//u%4:1@h", 'invalid URL escape "%4"'),
    ("//a[::1]", "invalid IP-literal"),
    ("//[::1", "missing ']' in host"),
    ("//[::1]a", 'invalid port "a" after host'),
    ("//[]", 'invalid host: "" is no IPv6 address'),
    ("//[1.2.3.4]", 'invalid host: "1.2.3.4" is no IPv6 address'),
    ("//[::01.2.3.4]", 'invalid host: "::01.2.3.4" is no IPv6 address'),
    ("//[1:2:3:4:5:6:7:8::]", 'invalid host: "1:2:3:4:5:6:7:8::" is no IPv6 address'),
    ("//[::%ff]", 'invalid host: "::%ff" is no IPv6 address'),
    ("//[fe80::1%en0]", 'invalid URL escape "%en"'),
    ("//[fe80::1%25]", "invalid host: zone must be a non-empty string"),
    ("//[fe80::1%25a%2F]", 'invalid URL escape "%2F"'),
    ("//[fe80::1%25%C3%BC]", 'invalid URL escape "%C3"'),
    ("//[fe80::1%25a b]", 'invalid character " " in host name'),
]


@pytest.mark.parametrize("text", TAKEN)
def test_what_go_takes_is_taken(text: str) -> None:
    check_go_url(text)


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_what_go_refuses_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(GoUrlError) as caught:
        check_go_url(text)
    assert str(caught.value) == reason


@given(st.text(alphabet="aé0%2:/?#@[]. \x00", max_size=12) | st.text(max_size=30))
def test_no_text_makes_another_error(text: str) -> None:
    with suppress(GoUrlError):
        check_go_url(text)
