"""What `scripts/benchmark.py` measures, and what turns the results into README's tables and plot."""
