"""The optimisers, one file each, and the schedule of the learning rate.

    adamw       AdamW, with full-precision masters
    schedule    the learning rate of an update

`registry` has the protocol of an optimiser. A new one is a settings class in `configs.run` and a file here
that ends in `OPTIMIZERS.add(Settings, Kind)`. Only that file knows the content of the optimiser's state.

Files here import MLX in their functions, not at the top, because `pippin check` reports the size of an
optimiser's state without importing MLX.
"""
