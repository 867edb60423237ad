"""What a call complains of, which must be one line."""

from collections.abc import Callable

import pytest

from runtime.errors import BadInput


def complaint(work: Callable, *arguments) -> str:
    with pytest.raises(BadInput) as caught:
        work(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
