"""What is trained of a network, one kind a file: its settings choose it, and it alone knows how.

    full    every weight
    lora    low-rank adapters beside frozen weights

`registry` says what a kind answers for. A new one is a class in `configs.schema` and a file here that
ends in `ADAPTERS.add(schema.Kind, KindAdapter)`; nothing else asks which kind it is.
"""
