"""Configurations of the peers, tuned as their experts would."""
