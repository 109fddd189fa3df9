"""Speed and memory beside what one would use instead; `python -m benchmarks.run` from the repository's root."""
