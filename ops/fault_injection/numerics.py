"""A digest of how this machine computes: of MLX's results for fixed numbers.

Equal digests let a run from elsewhere be compared bit for bit. They may differ between versions of MLX,
processors and mathematics libraries, without anything being wrong.
"""

import mlx.core as mx

from policies.weights import digest

SIZE = 64


def fingerprint() -> str:
    """Returns the digest. Computes with MLX."""
    a = mx.random.normal((SIZE, SIZE), key=mx.random.key(1))
    b = mx.random.normal((SIZE, SIZE), key=mx.random.key(2))
    queries = a.reshape(1, 4, 16, SIZE)
    return digest(
        {
            "product": a @ b,
            "softmax": mx.softmax(a @ b, axis=-1),
            "logsumexp": mx.logsumexp(3 * a, axis=-1),
            "exp": mx.exp(a),
            "log": mx.log(mx.abs(b) + 0.1),
            "sine": mx.sin(10 * a),
            "sigmoid": mx.sigmoid(b),
            "root": mx.rsqrt(mx.abs(a) + 0.1),
            "norm": mx.fast.rms_norm(a, b[0], 1e-6),
            "rope": mx.fast.rope(queries, SIZE, traditional=False, base=1e4, scale=1.0, offset=3),
            "attention": mx.fast.scaled_dot_product_attention(
                queries, queries, queries, scale=0.125
            ),
            "gradient": mx.grad(lambda x: mx.square(mx.softmax(x @ b, axis=-1)).sum())(a),
        }
    )
