"""Speed and memory compared with the usual alternatives; `python -m benchmarks.run` from the repository's root."""
