"""The kinds of training, one file each: which weights of a network are trained, and how.

    full    every weight
    lora    low-rank adapters beside frozen weights

`registry` has the protocol of a kind. A new kind is a settings class in `configs.model` and a file here that
ends in `ADAPTERS.add(Kind, KindAdapter)`; no other code depends on the kind.

Files here import MLX in their functions, not at the top, because `pippin check` reports the number of trained
parameters without importing MLX.
"""
