"""One exposition out of several workers' (Prometheus text format 0.0.4): counters and histograms add up."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

_SMALLEST = frozenset(
    {
        "sidecar_ledger_up", "open_banking_credits_remaining", "sidecar_build_info", "process_start_time_seconds",
        "process_max_fds",
    }
)  # fmt: skip
"""Gauges of which a sum would mean nothing: the worst of the workers is told."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


def merge(texts: Iterable[bytes]) -> bytes:
    """Raises ValueError: a text is no exposition."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[_Key, float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            families.setdefault(family.name, family)
            samples = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                if key not in samples:
                    samples[key] = sample.value
                elif family.name in _SMALLEST:
                    samples[key] = min(samples[key], sample.value)
                else:
                    samples[key] += sample.value
    lines = []
    for name, family in families.items():
        full = f"{name}_total" if family.type == "counter" else name
        lines.append(f"# HELP {full} {family.documentation}\n# TYPE {full} {family.type}\n")
        for (sample_name, labels), value in values[name].items():
            inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
            lines.append(f"{sample_name}{{{inner}}} {value}\n" if inner else f"{sample_name} {value}\n")
    return "".join(lines).encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
