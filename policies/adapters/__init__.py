"""What is trained of a network, one kind a file: its settings choose it, and it alone knows how.

    full    every weight
    lora    low-rank adapters beside frozen weights

`registry` says what a kind answers for. A new one is a class in `configs.schema` and a file here that
ends in `ADAPTERS.add(schema.Kind, KindAdapter)`; nothing else asks which kind it is.

Files here import MLX in their functions, not above: `pippin check` asks how many parameters are trained, and
answers before anything heavy is imported.
"""
