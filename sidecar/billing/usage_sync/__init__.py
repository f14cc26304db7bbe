"""Brings metered usage from OpenMeter to Lago, and compares what Lago has invoiced with the ledger.

Lago takes events that cannot be changed, and has no aggregate to set. So usage is cut into segments of time, the units
of a segment are sent as one event, and what comes late is sent as a difference. ``planning`` decides, without I/O, what
a period owes; ``sync_store`` freezes an event in Valkey before it is sent for the first time; ``delivery`` sends;
``sync_round`` puts them together for many accounts; ``usage_sync`` is what others call.
"""
