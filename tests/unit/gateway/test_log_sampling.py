"""Which lines about refusals are logged, and what is said of the others."""

from __future__ import annotations

from sidecar.gateway.admission.log_sampling import CLIENTS_MAX, KINDS_MAX, OTHER, LogSampling, Unlogged


def test_the_first_lines_of_a_client_are_logged_and_the_rest_is_a_number() -> None:
    sampling = LogSampling(3)

    logged = [sampling.admits(402, "insufficient-credits", "192.0.2.1") for _ in range(10)]

    assert logged == [True] * 3 + [False] * 7
    assert sampling.end_window() == [Unlogged((402, "insufficient-credits"), 7, 1, "192.0.2.1")]
    assert sampling.unlogged == 7


def test_each_reason_and_each_client_has_lines_of_its_own() -> None:
    sampling = LogSampling(1)

    assert sampling.admits(402, "a", "192.0.2.1")
    assert sampling.admits(402, "a", "192.0.2.2")
    assert sampling.admits(402, "b", "192.0.2.1")
    assert sampling.admits(403, "a", "192.0.2.1")
    assert not sampling.admits(403, "a", "192.0.2.1")


def test_a_window_that_ends_begins_anew() -> None:
    sampling = LogSampling(1)
    for _ in range(2):
        assert sampling.admits(402, "a", "192.0.2.1")
        assert not sampling.admits(402, "a", "192.0.2.1")
        assert len(sampling.end_window()) == 1
    assert sampling.end_window() == []


def test_many_clients_cannot_fill_the_log_or_the_memory() -> None:
    sampling = LogSampling(10)

    logged = sum(sampling.admits(401, "no-credential", f"client {n}") for n in range(5_000))

    assert logged == CLIENTS_MAX
    (left_out,) = sampling.end_window()
    assert (left_out.count, left_out.clients) == (5_000 - CLIENTS_MAX, CLIENTS_MAX + 1)


def test_many_reasons_cannot_either() -> None:
    sampling = LogSampling(10)

    logged = sum(sampling.admits(400, f"reason {n}", "192.0.2.1") for n in range(5_000))

    assert logged == KINDS_MAX
    assert [each.kind for each in sampling.end_window()] == [OTHER]


def test_zero_is_all_lines() -> None:
    sampling = LogSampling(0)

    assert all(sampling.admits(402, "a", "192.0.2.1") for _ in range(100))
    assert sampling.end_window() == []
