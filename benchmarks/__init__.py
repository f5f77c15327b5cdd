"""Side-by-side measurements. Each program prints a table and, as its last line, one JSON object.

    python -m benchmarks.decode --quick
    python -m benchmarks.run_all

docs/benchmarks.md says how they measure; BENCHMARKS.md holds what they found last.
"""
