"""Compares the ledger's counts with OpenMeter's hour by hour, and sends again what OpenMeter has lost.

An answer of 204 proves only that OpenMeter has put events into a queue. The ledger counts every hour's units by account
and metric in the step that charges them (docs/ledger.md), and keeps accepted events for a while; so what is missing
is found, and most of it can be brought back. Events are sent again under the ids that they had, of which OpenMeter
counts each once, if ``sink.dedupe.enabled`` is on.
"""
