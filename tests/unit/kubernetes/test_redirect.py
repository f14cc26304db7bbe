"""Rules of redirection, as text; that they do what they say is seen in ``tests/host``."""

from __future__ import annotations

import pytest

from sidecar.kubernetes.redirect import Redirect, RedirectError, iptables_rules, nft_removal, nft_rules, parse_ports
from tests.support.processes import sidecar


def test_what_an_earlier_run_left_is_replaced_in_one_transaction() -> None:
    rules = nft_rules(Redirect((8080,), 15701), ["ip", "ip6"])
    assert rules.startswith(nft_removal(["ip"]))
    assert rules.count("table ip6 quota_sidecar {") == 1
    assert "    tcp dport { 8080 } redirect to :15701\n" in rules


def test_what_comes_from_within_the_pod_is_left_alone_before_anything_else() -> None:
    for rules in (nft_rules(Redirect(None, 15701), ["ip"]), iptables_rules(Redirect(None, 15701))):
        lines = [line.strip() for line in rules.splitlines() if "return" in line.lower() or "redirect" in line.lower()]
        assert "lo" in lines[0]
        assert "redirect" in lines[-1].lower()


def test_a_star_leaves_the_excluded_and_the_gateway_s_port_alone() -> None:
    redirect = Redirect(None, 15701, (9090, 22))
    assert redirect.left_alone == (22, 9090, 15701)
    assert "tcp dport { 22, 9090, 15701 } return" in nft_rules(redirect, ["ip"])
    assert "-A QUOTA_SIDECAR -p tcp --dport 9090 -j RETURN\n" in iptables_rules(redirect)


@pytest.mark.parametrize(
    ("text", "ports"), [("*", None), (" * ", None), ("8080", (8080,)), ("8080, 1,65535", (8080, 1, 65535)), ("", ())]
)
def test_ports_are_read_from_text(text: str, ports: tuple[int, ...] | None) -> None:
    assert parse_ports(text) == ports


MISTAKES = {
    "a name": ("http", "'http' is not a port: 1 to 65535"),
    "zero": ("0", "'0' is not a port"),
    "too large": ("65536", "'65536' is not a port"),
    "a sign": ("+80", "'+80' is not a port"),
    "an attempt at a rule of one's own": ("80 accept; flush ruleset", "'80 accept; flush rul' is not a port"),
    "twice": ("80,80", "80 is named twice"),
    "far too many": (",".join(map(str, range(1, 100))), "99 ports are too many: 64 at most"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_no_port_is_named(text: str, message: str) -> None:
    with pytest.raises(RedirectError) as caught:
        parse_ports(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("ports", "exclude", "words"), [((15701,), (), "its own port"), ((80, 81), (81,), "81 is to be redirected and")]
)
def test_a_redirection_that_contradicts_itself_is_refused(
    ports: tuple[int, ...], exclude: tuple[int, ...], words: str
) -> None:
    with pytest.raises(RedirectError, match=words.replace("its own port", "own port")):
        Redirect(ports, 15701, exclude)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--ports", "http"), 2, "'http' is not a port"),
        ((), 2, "--ports names no port"),
        (("--ports", "15701"), 2, "own port"),
        (("--ports", "80", "--backend", "ipfw"), 2, "ipfw"),
    ],
)
def test_a_mistake_on_the_command_line_changes_nothing_and_says_why(
    arguments: tuple[str, ...], code: int, words: str
) -> None:
    ended = sidecar("redirect", *arguments)
    assert (ended.returncode, words in ended.stderr, "Traceback" in ended.stderr) == (code, True, False), ended.stderr
