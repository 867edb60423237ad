"""How a gradient becomes a step, one optimiser a file.

    adamw       AdamW, with full-precision masters
    gradient    what every optimiser does first: the norm, and scaling down to a limit
    schedule    the learning rate of an update

`registry` says what an optimiser answers for. A new one is a settings class in `configs.schema` and a file
here that ends in `OPTIMIZERS.add(schema.Kind, Kind)`. Nobody outside its file knows what its state holds.
"""
