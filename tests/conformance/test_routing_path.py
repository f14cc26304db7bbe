"""Paths by which a request is priced mean the same to every server behind."""

from __future__ import annotations

import pytest

from sidecar.gateway.http1.framing import ProtocolError
from sidecar.gateway.http1.target import routing_path
from tests.conformance.corpus_cases import PathCase, path_cases


@pytest.mark.parametrize("case", path_cases(), ids=lambda case: case.path.decode("latin-1"))
def test_a_path_is_routed_or_refused_as_the_corpus_says(case: PathCase) -> None:
    if case.refuse:
        with pytest.raises(ProtocolError) as caught:
            routing_path(case.path)
        assert caught.value.status == 400
    else:
        assert routing_path(case.path) == case.route


@pytest.mark.parametrize("case", [case for case in path_cases() if case.route], ids=lambda case: case.path.decode())
def test_a_routing_path_is_its_own_routing_path(case: PathCase) -> None:
    assert case.route is not None
    assert routing_path(case.route) == case.route
