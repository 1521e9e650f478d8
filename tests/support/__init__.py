"""What the tests with real processes, the demo and the benchmarks share."""
