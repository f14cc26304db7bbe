"""What a check says, and what a run's checks mean for its exit status."""

from __future__ import annotations

from loadtests.scenarios.checks import Verdict, equals, exit_status, passes, unchecked, within

HOLDS, FAILED = equals("a", 1, 1), equals("b", 1, 2)
UNCHECKED = unchecked("c", "0", "--valkey")


def test_all_that_could_be_checked_holds_is_exit_status_0() -> None:
    assert exit_status([HOLDS, UNCHECKED]) == 0


def test_one_broken_check_among_many_fails_the_run() -> None:
    assert exit_status([HOLDS, HOLDS, FAILED, UNCHECKED]) == 1


def test_nothing_checked_is_not_a_success() -> None:
    assert exit_status([UNCHECKED]) == 2
    assert exit_status([]) == 2


def test_an_unchecked_check_never_passes_and_names_what_is_missing() -> None:
    assert (UNCHECKED.verdict, UNCHECKED.found) == (Verdict.UNCHECKED, "needs --valkey")


def test_figures_are_shown_as_people_write_them() -> None:
    check = equals("calls", 12_345, 12_346)
    assert (check.expected, check.found, check.verdict) == ("12,345", "12,346", Verdict.FAILED)
    assert passes("p99", True, "≤ 5 s", "1 s").verdict is Verdict.HOLDS


def test_sums_that_agree_while_accounts_differ_fail_and_the_accounts_are_named() -> None:
    check = within("debits", {"a": 5, "b": 5}, {"a": 5, "b": 5}, {"a": 4, "b": 6})
    assert check.verdict is Verdict.FAILED
    assert check.found == "10 (a: 4, not 5; b: 6, not 5)"


def test_between_low_and_high_holds_at_both_ends_and_not_beyond() -> None:
    found = [within("debits", {"a": 5}, {"a": 7}, {"a": units}).verdict for units in (4, 5, 7, 8)]
    assert found == [Verdict.FAILED, Verdict.HOLDS, Verdict.HOLDS, Verdict.FAILED]


def test_an_account_that_nobody_asked_for_and_that_was_debited_is_found() -> None:
    assert within("debits", {}, {}, {"a": 1}).verdict is Verdict.FAILED


def test_an_account_that_was_not_debited_at_all_is_found() -> None:
    assert within("debits", {"a": 1}, {"a": 1}, {}).verdict is Verdict.FAILED


def test_of_many_wrong_accounts_a_few_are_named() -> None:
    wrong = {f"tpp-{number}": 1 for number in range(10)}
    found = within("debits", wrong, wrong, {}).found
    assert found.endswith("and 7 more accounts)")
    assert found.count("tpp-") == 3
