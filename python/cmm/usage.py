"""The name that ``cmm.routing_stats`` had in 0.1.0."""

from cmm.routing_stats import dead_subtrees, node_usage

__all__ = ["dead_subtrees", "node_usage"]
