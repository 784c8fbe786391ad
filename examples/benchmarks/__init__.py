"""Benchmark: what an estimate costs and how wrong it is, and how near the engine is to the machine. It asserts nothing."""
