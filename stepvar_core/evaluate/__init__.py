"""Pictures and timings for public benchmarks: `python -m stepvar_core.evaluate`."""
