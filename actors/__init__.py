"""The actors of a run, which hold its state, with their conductor and their topology.

This is the first of our modules that a Ray worker imports: it must choose its BLAS before it imports MLX.
"""

from runtime.blas import load_for_worker

load_for_worker()
