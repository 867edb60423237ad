"""Completions that break careless verifiers; none is a right answer to anything."""

from runtime.tasks.countdown import LONGEST_ANSWER

HOSTILE = [
    "",
    " \t\n",
    "\0",
    "1" * 10**5,
    "1" * 10**5 + "x",
    "+" * 10**5,
    "(" * 10**5,
    "(" * LONGEST_ANSWER,
    "007 " * 10**5,
    "²",
    "٣",
    "1\ud800",
    "\udfff",
    "None",
    "__import__('os')",
    "9**9**9",
    "1e400",
    "-",
    "#### ",
    "####" * 10**4,
    "#### " + "1" * 10**5 + "x",
    "#### " + "1,111" * 10**5,
    "#### " + "$ *" * 10**5 + "x",
    "#### " + "1.1" * 10**5,
    "#### ²",
    "#### ٣",
]
