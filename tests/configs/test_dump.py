from pathlib import Path

import msgspec
import pytest

from configs import load
from configs.algorithms.grpo import Grpo
from configs.algorithms.sft import Sft
from configs.dump import to_toml
from configs.losses import Cispo, Clip, DppoTv, Gspo, Kl, Mask, Reinforce, Truncate
from configs.model import Lora, Model
from configs.run import Checkpoint, Power, Sampling
from configs.schema import Settings
from configs.tasks import Addition, Jsonl

STRANGE = 'a "quoted" line\nwith \\ and \t and \x7f and \x01 and ü and 𝄞 # not a comment'


@pytest.mark.parametrize(
    "settings",
    [
        Settings(task=Addition(), algorithm=Grpo()),
        Settings(task=Addition(), algorithm=Sft(), seed=2**63 - 1, exact=True),
        Settings(
            task=Addition(digits=4),
            algorithm=Grpo(
                surrogate=Gspo(),
                normalizer="sequence_mean",
                correction=Mask(),
                kl=Kl(coefficient=1e-20),
            ),
            model=Model(
                path="org/name",
                system=STRANGE,
                train=Lora(modules=["self_attn.q_proj", "odd.näme"]),
                chat_template={"a": True, "b": 3, "c": 0.1, "odd key": STRANGE, "": "x"},
            ),
        ),
        *(
            Settings(task=Addition(), algorithm=Grpo(surrogate=surrogate, correction=Truncate()))
            for surrogate in (Clip(dual=0.0), Cispo(), DppoTv(), Reinforce())
        ),
        Settings(
            task=Jsonl(train="/a/b.jsonl", reward="/a/r.py", pass_at=0.1),
            algorithm=Grpo(),
            sampling=Sampling(temperature=1 / 3),
        ),
        Settings(
            task=Addition(),
            algorithm=Grpo(),
            checkpoint=Checkpoint(keep_every=5),
            power=Power(on_battery="pause", hours=["22:00-07:00", "12:00-13:00"], duty_cycle=0.5),
        ),
    ],
)
def test_settings_survive_being_written_and_read(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "resolved.toml"
    path.write_text(to_toml(settings))
    assert load(path) == settings


def test_every_key_is_written() -> None:
    import tomllib

    settings = Settings(task=Addition(), algorithm=Grpo())
    assert tomllib.loads(to_toml(settings)) == msgspec.to_builtins(settings)
