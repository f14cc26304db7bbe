"""The words for a machine."""

from __future__ import annotations

import os
import platform

import pytest

from loadtests.kit import machine


@pytest.mark.parametrize(
    ("cpuinfo", "words"),
    [
        ("processor\t: 0\nmodel name\t: AMD  EPYC 7B13 \n", "AMD EPYC 7B13 (x86_64)"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n\nModel\t\t: Raspberry Pi 4\n", "Raspberry Pi 4 (x86_64)"),
        ("model name\t:\n", "x86_64"),
        ("", "x86_64"),
    ],
)
def test_a_processor_is_named_by_its_model_or_else_its_architecture(cpuinfo: str, words: str) -> None:
    assert machine.processor(cpuinfo, "x86_64") == words


def test_a_machine_is_named_with_cores_and_kernel() -> None:
    words = machine.describe()
    assert platform.machine() in words
    assert f", {os.cpu_count()} core" in words
    assert words.endswith(platform.release())
