"""Probabilistic context-free grammars of low rank, and positive factors of k variables."""
