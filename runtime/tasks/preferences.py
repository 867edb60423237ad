"""Rows of human or machine preferences: a prompt with two answers, or with one judged answer.

An answer is a string, or a list of messages that ends with the assistant's. If the prompt's column is
absent, the messages before the answer are the prompt (the implicit prompts of TRL's conversational data
sets); if it is present, such messages must repeat it. So files of `make-data`, of TRL and in the form of
UltraFeedback are read without a conversion:

    {"prompt": "Sort 3 1 2.", "chosen": "1 2 3", "rejected": "1 3 2"}
    {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}
    {"prompt": "Sort 3 1 2.", "completion": "1 2 3", "label": true}

Only the last message is trained on. Rows must have been read with the columns that `pair_columns` or
`judged_columns` names.
"""

from msgspec import Struct

from runtime.errors import BadInput
from runtime.jsonl import Row
from runtime.tasks.messages import Messages, checked_messages, ends_with_user, prompt_messages

Columns = dict[str, tuple[type, ...]]


class Pair(Struct, frozen=True):
    """A prompt with a preferred and a rejected answer."""

    messages: Messages
    chosen: str
    rejected: str


class Judged(Struct, frozen=True):
    """A prompt with an answer that is desirable or not (KTO)."""

    messages: Messages
    completion: str
    desirable: bool


def pair_columns(chosen: str, rejected: str) -> Columns:
    """Returns the columns, with their types, that `read_rows` requires in each row of pairs."""
    return {chosen: (str, list), rejected: (str, list)}


def judged_columns(completion: str, label: str) -> Columns:
    """Returns the columns, with their types, that `read_rows` requires in each row of judged answers."""
    return {completion: (str, list), label: (bool,)}


def pair(row: Row, *, prompt: str, chosen: str, rejected: str) -> Pair:
    """Returns the row as a pair; raises BadInput that names file, line and column.

    The arguments are names of columns. Equal answers are accepted although nothing is learned from them,
    because public data sets contain some.
    """
    chosen_before, better = _answer(row, chosen)
    rejected_before, worse = _answer(row, rejected)
    if prompt in row.values:
        messages = prompt_messages(row, prompt)
        for column, before in ((chosen, chosen_before), (rejected, rejected_before)):
            _repeats(row, column, before, prompt, messages)
        return Pair(messages, better, worse)
    columns = f'columns "{chosen}" and "{rejected}"'
    if not chosen_before or not rejected_before:
        raise _no_prompt(row, prompt, columns)
    if chosen_before != rejected_before:
        came = _first_difference(chosen_before, rejected_before)
        raise row.bad(f"{columns}: needed the same messages before the answers, got {came}")
    return Pair(_asked(row, chosen, chosen_before), better, worse)


def judged(row: Row, *, prompt: str, completion: str, label: str) -> Judged:
    """Returns the row as a judged answer; raises BadInput that names file, line and column.

    The arguments are names of columns; the label is true for a desirable answer.
    """
    before, text = _answer(row, completion)
    desirable = row.values[label]
    if prompt in row.values:
        messages = prompt_messages(row, prompt)
        _repeats(row, completion, before, prompt, messages)
        return Judged(messages, text, desirable)
    if not before:
        raise _no_prompt(row, prompt, f'column "{completion}"')
    return Judged(_asked(row, completion, before), text, desirable)


def _answer(row: Row, column: str) -> tuple[Messages, str]:
    """Returns the messages before the answer, and the answer."""
    value = row.values[column]
    if isinstance(value, str):
        return [], value
    messages = checked_messages(row, column, value)
    if not messages or messages[-1]["role"] != "assistant":
        came = f"the {messages[-1]['role']}'s" if messages else "no message"
        raise row.bad(f'column "{column}": needed the assistant\'s message at the end, got {came}')
    return messages[:-1], messages[-1]["content"]


def _repeats(row: Row, column: str, before: Messages, prompt: str, messages: Messages) -> None:
    if before and before != messages:
        came = _first_difference(before, messages)
        raise row.bad(
            f'column "{column}": needed the answer alone, or behind the messages of column '
            f'"{prompt}", got {came}'
        )


def _asked(row: Row, column: str, before: Messages) -> Messages:
    if not ends_with_user(before):
        raise row.bad(
            f'column "{column}": needed text from the user right before the answer, got none'
        )
    return before


def _no_prompt(row: Row, prompt: str, columns: str) -> BadInput:
    return row.bad(
        f'needed the column "{prompt}", or lists of messages that begin with the prompt in '
        f"{columns}, got neither"
    )


def _first_difference(one: Messages, other: Messages) -> str:
    for number, (first, second) in enumerate(zip(one, other), start=1):
        if first != second:
            return f"another message {number}"
    return f"{len(one)} and {len(other)} messages"
