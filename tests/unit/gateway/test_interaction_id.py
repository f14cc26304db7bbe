"""Interaction ids and traces, without a request around them."""

from __future__ import annotations

import uuid

import pytest

from sidecar.gateway.interaction_id import FAPI_INTERACTION_ID, LINE_ENDS, WHOLE, InteractionIds, id_text
from sidecar.gateway.methods import METHOD_LABELS, METHODS
from sidecar.gateway.trace_context import is_traceparent, new_traceparent


def test_ids_are_uuids_of_version_4_and_differ_from_block_to_block() -> None:
    ids = InteractionIds(FAPI_INTERACTION_ID)
    seen = set()
    for _ in range(1_000):
        number = ids.make()
        text = id_text(ids.block, number)
        assert ids.block.line + LINE_ENDS[number] == b"x-fapi-interaction-id: " + text.encode() + b"\r\n"
        made = uuid.UUID(text)
        assert (made.version, made.variant, str(made)) == (4, uuid.RFC_4122, text)
        seen.add(text)
    assert len(seen) == 1_000


def test_an_id_outlives_its_block() -> None:
    ids = InteractionIds(FAPI_INTERACTION_ID)
    number, block = ids.make(), ids.block
    text = id_text(block, number)
    for _ in range(600):
        assert ids.make_text() != text
    assert id_text(block, number) == text


def test_two_processes_make_different_ids() -> None:
    assert len({InteractionIds(FAPI_INTERACTION_ID).make_text() for _ in range(100)}) == 100


def test_of_an_apis_id_the_log_has_the_beginning() -> None:
    block = InteractionIds(FAPI_INTERACTION_ID).given(b"\xe9" * 200)
    assert id_text(block, WHOLE) == "\xe9" * 128
    assert block.line + LINE_ENDS[WHOLE] == b"x-fapi-interaction-id: " + b"\xe9" * 200 + b"\r\n"


def test_a_new_trace_is_valid_and_another_each_time() -> None:
    traces = {new_traceparent() for _ in range(100)}
    assert len(traces) == 100
    assert all(map(is_traceparent, traces))


@pytest.mark.parametrize("method", [b"get", b"PURGE", b"", b"GET ", b"X" * 32, b"\xff"])
def test_a_method_that_nobody_registered_is_another(method: bytes) -> None:
    assert method not in METHOD_LABELS


def test_a_registered_method_has_its_name() -> None:
    assert [METHOD_LABELS[method.encode()] for method in METHODS] == list(METHODS)
