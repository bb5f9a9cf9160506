"""What the benchmarks share: contestants, gates, turns, the machine's rates, tables."""
