"""Lines about what was shed."""

from __future__ import annotations

from structlog.testing import capture_logs

from sidecar.gateway.admission.shed_log import ShedLog


def test_a_reason_has_a_line_in_ten_seconds_with_the_count_since() -> None:
    with capture_logs() as lines:
        shed = ShedLog()
        for second in range(25):
            shed.note("idle", "192.0.2.1", "", float(second))
        shed.note("heads", "", "tpp", 25.0)
    assert [(line["reason"], line["count"]) for line in lines] == [
        ("idle", 1),
        ("idle", 10),
        ("idle", 10),
        ("heads", 1),
    ]
    assert lines[0]["peer"] == "192.0.2.1"
    assert "account" not in lines[0]
    assert (lines[3]["account"], "peer" in lines[3]) == ("tpp", False)
