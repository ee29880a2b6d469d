"""Monitoring of a deployed network: drift of its exit fractions, and audits by the last exit."""
