"""Commands that measure the claims of this project. `python -m benchmarks --list` lists them."""
