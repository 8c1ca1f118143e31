"""Local training only: no knowledge leaves a client. The yardstick of every other method.

Departures: none, as it is no paper's.
"""

from __future__ import annotations

from fedkd.strategies.base import KnowledgeStrategy


class Local(KnowledgeStrategy):
    """Clients train on their own data and share nothing."""
