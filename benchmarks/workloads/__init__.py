"""Real GPU programs with fixed seeds and digests, each run in its own process: `python3 -m benchmarks.workloads`."""
