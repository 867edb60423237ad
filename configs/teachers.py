"""Settings of teachers: a checkpoint on this machine, or an endpoint."""

from typing import Annotated, Literal

from configs.fields import Closed, Seconds, Text, up_to


class LocalTeacher(Closed, frozen=True, tag_field="name", tag="local"):
    """A checkpoint on this machine, frozen."""

    path: Text
    """The checkpoint, in the forms of `model.path`; "seedling-grown" is the seedling after a longer warm
    start."""
    quantize_bits: Literal[0, 4, 8] = 0
    """Bits to which the teacher is quantised when it is loaded; 0 leaves it as it is."""
    dtype: Literal["checkpoint", "float32", "float16", "bfloat16"] = "checkpoint"
    chat_template: dict[str, bool | int | float | str] = {}
    """Arguments of the teacher's chat template, if it answers prompts itself."""
    system: str = ""
    """A system message before each prompt that the teacher answers itself; empty for none."""


class EndpointTeacher(Closed, frozen=True, tag_field="name", tag="endpoint"):
    """An OpenAI-compatible endpoint: text only."""

    url: Text
    """The address up to and including the version, such as "http://127.0.0.1:8080/v1"."""
    model: Text
    key_variable: str = ""
    """Name of the environment variable with the key; empty: none is sent."""
    concurrency: Annotated[int, up_to(256)] = 4
    """Requests under way at once."""
    attempts: Annotated[int, up_to(100)] = 5
    timeout_s: Seconds = 300.0
    """Time limit of one attempt."""
    system: str = ""
    """A system message before each prompt; empty for none."""


Teacher = LocalTeacher | EndpointTeacher
