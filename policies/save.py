"""A policy becomes files: the whole model, or what its adapter trained, and how large that is."""

import shutil
from pathlib import Path

from policies import mlx_lm_port
from policies.arrays import flat
from policies.policy import Policy
from runtime.errors import BadInput


def save_checkpoint(policy: Policy, folder: Path, *, dequantize: bool = False) -> None:
    """Writes the whole model in the Hugging Face layout, adapters fused into their base for good."""
    folder.mkdir(parents=True, exist_ok=True)
    if policy.adapter is not None:
        policy.adapter.fuse(policy.model, dequantize=dequantize)
    if dequantize:
        policy.model = mlx_lm_port.dequantize(policy.model)
        policy.config = {k: v for k, v in policy.config.items() if not k.startswith("quantiz")}
    mlx_lm_port.save_network(policy.model, policy.config, folder)
    for source in policy.folder.iterdir():
        wanted = source.suffix in {".json", ".jinja", ".txt"} or source.name == "tokenizer.model"
        if wanted and source.name != "config.json" and "index" not in source.name:
            shutil.copyfile(source, folder / source.name)


def save_adapters(policy: Policy, folder: Path) -> None:
    """Writes what was trained, apart from its base. Raises BadInput if it cannot be told apart."""
    if policy.adapter is None:
        raise BadInput("--adapters: nothing of this model was trained, it has no adapters")
    policy.adapter.export(policy.model, policy.folder, folder)


def parameter_count(policy: Policy) -> int:
    """Returns the number of the network's weights, without an adapter's, which an export fuses into it."""
    return mlx_lm_port.parameter_count(policy.model)


def weights_bytes(policy: Policy) -> int:
    """Returns what these weights take in memory, and in an exported checkpoint."""
    adapter = policy.adapter
    added = policy.trained().keys() if adapter is not None and adapter.adds_weights else ()
    parameters = flat(policy.model.parameters())
    return sum(array.nbytes for name, array in parameters.items() if name not in added)
