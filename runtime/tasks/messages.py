"""Reads and checks chat messages in a column of a row."""

from runtime.jsonl import Row, kind

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]


def prompt_messages(row: Row, column: str) -> Messages:
    """Returns the messages of a prompt column; a string is taken as the user's only message.

    Raises BadInput unless the last message is the user's.
    """
    prompt = row.values[column]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = checked_messages(row, column, prompt)
    if not ends_with_user(messages):
        raise row.bad(f'column "{column}": needed text from the user at the end, got none')
    return messages


def checked_messages(row: Row, column: str, value: object) -> Messages:
    """Returns the column's list of messages; raises BadInput if it is anything else."""
    if not isinstance(value, list):
        raise row.bad(f'column "{column}": needed a string or a list, got {kind(value)}')
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            came = f"keys {sorted(message)}" if isinstance(message, dict) else kind(message)
            raise row.bad(f'column "{column}": needed messages {{role, content}}, got {came}')
        if message["role"] not in ROLES:
            needed = ", ".join(ROLES)
            raise row.bad(f'column "{column}": needed a role of {needed}, got {message["role"]!r}')
        if not isinstance(message["content"], str):
            came = kind(message["content"])
            raise row.bad(f'column "{column}": needed content that is a string, got {came}')
    return value


def ends_with_user(messages: Messages) -> bool:
    """Returns whether the last message is the user's and is not blank."""
    return (
        bool(messages) and messages[-1]["role"] == "user" and bool(messages[-1]["content"].strip())
    )
