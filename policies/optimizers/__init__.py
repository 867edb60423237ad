"""How a gradient becomes a step, one optimiser a file.

    adamw       AdamW, with full-precision masters
    schedule    the learning rate of an update

`registry` says what an optimiser answers for. A new one is a settings class in `configs.schema` and a file
here that ends in `OPTIMIZERS.add(schema.Kind, Kind)`. What its state holds is known in that file alone.

Files here import MLX in their functions, not above: `pippin check` asks how much an optimiser keeps, and
answers before anything heavy is imported.
"""
