"""Every table of the four papers beside what is measured here; see `benchmarks.papers.__main__`."""
