"""Rewards that mean ill, each with the outcome that a run records for it.

These are bodies of `reward(prompt, completion, row)`. An outcome is a reward or the kind of a failure; a
tuple lists those that are right.
"""

from typing import Any, NamedTuple


class Hostile(NamedTuple):
    """One of them."""

    name: str
    body: str
    outcome: Any
    stays: bool = False
    """Whether it spoils its process for later calls, which is then started anew."""
    quick: bool = False
    """Whether it hangs, and so is called with a short time limit."""


VALUES = {
    "None": "not_a_number", "float('nan')": "not_a_number", "float('inf')": "not_a_number",
    "-float('inf')": "not_a_number", "10**400": "not_a_number", "'1.0'": "not_a_number",
    "b'1'": "not_a_number", "[1.0]": "not_a_number", "{}": "not_a_number", "1j": "not_a_number",
    "...": "not_a_number", "(x for x in [1])": "not_a_number", "lambda: 1": "not_a_number",
    "__import__('decimal').Decimal('NaN')": "not_a_number", "type('T', (), {'__float__': lambda s: 1.0})()":
    "not_a_number", "__import__('numpy').float32('nan')": "not_a_number",
    "__import__('numpy').ones(3)": "not_a_number", "__import__('numpy').float64('inf')": "not_a_number",
    "1e39": "out_of_range", "-1e39": "out_of_range", "1e19": "out_of_range", "10**38": "out_of_range",
    "1.7e308": "out_of_range", "1e18": 1e18, "-0.0": 0.0, "5e-324": 5e-324, "True": 1.0,
    "type('F', (float,), {'__repr__': lambda s: 'NaN, \"x\": '})(0.5)": 0.5,
    "type('I', (int,), {'__float__': lambda s: float('nan')})(1)": "not_a_number",
    "type('R', (), {'__repr__': lambda s: 1/0})()": "raised",
    "type('A', (), {'__getattr__': lambda s, n: 1.0})()": "not_a_number",
    "type('R', (), {'__repr__': lambda s: '\\x1b[2J\\ud800' * 10**6})()": "not_a_number",
    "type('M', (), {'__module__': 3})()": "not_a_number",
    "type('E', (), {'__eq__': lambda s, o: True, '__gt__': lambda s, o: True})()": "not_a_number",
}  # fmt: skip

ERRORS = {
    "raise SystemExit(0)": "raised", "import sys; sys.exit('bye')": "raised",
    "raise KeyboardInterrupt": "raised", "raise GeneratorExit": "raised",
    "raise StopIteration(1.0)": "raised",
    "raise BaseException('x' * 10**7)": "raised", "raise MemoryError": "out_of_memory",
    "raise ExceptionGroup('g', [ValueError(1)] * 1000)": "raised",
    "return reward(prompt, completion, row)": "raised",
    "raise type('\\x1b[31mX\\u202e', (Exception,), {})('\\x1b]0;t\\x07')": "raised",
    "raise type('S', (Exception,), {'__str__': lambda s: s.missing})": "raised",
    "raise type('S', (Exception,), {'__str__': lambda s: exit()})": "raised",
    "e = SyntaxError('m'); e.lineno = type('L', (), {'__format__': lambda *a: 1/0})(); raise e": "raised",
    "e = SyntaxError('m'); e.msg = type('L', (), {'__str__': lambda *a: 1/0})(); raise e": "raised",
    "import warnings; warnings.simplefilter('error'); warnings.warn('w')": "raised",
    "exec('def f(:')": "raised", "compile('(' * 500, 'x', 'eval')": "raised", "import nowhere": "raised",
    "import gc; gc.get_objects()": "raised", "import sys; sys._current_frames()": "raised",
}  # fmt: skip

DEATHS = [
    Hostile("exit at once", "import os; os._exit(0)", "died"),
    Hostile("exit with a code", "import os; os._exit(77)", "died"),
    Hostile("kill itself", "import os; os.kill(os.getpid(), 9)", "died"),
    Hostile("terminate itself", "import os; os.kill(os.getpid(), 15)", "died"),
    Hostile("abort", "import os; os.abort()", "died"),
    Hostile("segmentation fault", "import ctypes; ctypes.string_at(0)", "died"),
    Hostile("kill its group", "import os; os.killpg(0, 9)", "died"),
    Hostile("kill its guard", "import os; os.kill(os.getppid(), 9); import time; time.sleep(1000)", "died"),
    Hostile("close every descriptor", "import os; os.closerange(0, 4096); return 1", "died"),
    Hostile("become another program", "import os; os.execv('/bin/true', ['true'])", "died"),
    Hostile("a stack of C too deep", """
import sys; sys.setrecursionlimit(10**9)
x = []
for _ in range(10**6): x = [x]
repr(x)
""", ("died", "out_of_memory")),
    Hostile("an alarm", """
import signal, time; signal.setitimer(signal.ITIMER_REAL, .05); time.sleep(9)
""", "died"),
]  # fmt: skip

HANGS = [
    Hostile("spin", "while True: pass", "timed_out", quick=True),
    Hostile("sleep", "import time; time.sleep(1000)", "timed_out", quick=True),
    Hostile("backtrack", "import re; re.match('(a+)+$', 'a' * 60 + 'b')", "timed_out", quick=True),
    Hostile("big power", "return 7 ** 7 ** 12 % 10", "timed_out", quick=True),
    Hostile("endless sum", "import itertools; sum(itertools.count())", "timed_out", quick=True),
    Hostile("dead lock", """
import threading; l = threading.Lock(); l.acquire(); l.acquire()
""", "timed_out", quick=True),
    Hostile("stop itself", "import os; os.kill(os.getpid(), 19)", "timed_out", quick=True),
    Hostile("print for ever", "while True: print('x' * 10000)", "timed_out", quick=True),
    Hostile("swallow every error", """
while True:
    try:
        while True: pass
    except BaseException: pass
""", "timed_out", quick=True),
    Hostile("another program for ever", "import os; os.execv('/bin/sleep', ['sleep', '1000'])", "died"),
]  # fmt: skip

OUTPUT = [
    Hostile("print 64 MB", """
for _ in range(64): print('x' * (1 << 20))
return 1
""", 1.0),
    Hostile("print to the descriptor", "import os; os.write(1, b'x' * 300000); return 1", 1.0),
    Hostile("print errors", "import sys; sys.stderr.write('e' * 300000); return 1", 1.0),
    Hostile("print escapes", "print('\\x1b[2J\\x1b]0;t\\x07\\u202e'); return 1", 1.0),
    Hostile("print a reply", 'print(\'{"reward": 1.0}\', flush=True); return 0', 0.0),
    Hostile("a program prints", "import os; os.system('head -c 3000000 /dev/zero'); return 1", 1.0),
    Hostile("close the output", "import sys; sys.stdout.close(); return 1", 1.0, stays=True),
    Hostile("read the input", "import sys; return float(sys.stdin.read() == '')", 1.0),
    Hostile("a thread prints for ever", """
import threading
def f():
    while True: print('x' * 1000)
threading.Thread(target=f, daemon=True).start(); return 1
""", 1.0, stays=True),
]  # fmt: skip

PROCESSES = [
    Hostile("a child stays", """
import os, time
if os.fork() == 0: time.sleep(1000)
return 1
""", 1.0),
    Hostile("a child of a new session", """
import os, time
if os.fork() == 0:
    os.setsid(); time.sleep(1000)
return 1
""", 1.0),
    Hostile("a daemon", """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
    os._exit(0)
return 1
""", 1.0),
    Hostile("a daemon outlives", """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
    os._exit(0)
time.sleep(.1); os._exit(1)
""", "died"),
    Hostile("a daemon, and the guard killed", """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
    os._exit(0)
time.sleep(.1); os.kill(os.getppid(), 9); time.sleep(9)
""", "died"),
    Hostile("a program without environment", """
import subprocess; subprocess.Popen(['sleep', '1000.5'], env={}, start_new_session=True); return 1
""", 1.0),
    Hostile("one that outlives", """
import os, subprocess; subprocess.Popen(['sleep', '1000.5'], env={}, start_new_session=True); os._exit(1)
""", "died"),
    Hostile("nohup", "import os; os.system('nohup sleep 1000.5 >/dev/null 2>&1 &'); return 1", 1.0),
    Hostile("a child that ignores signals", """
import os, time
import signal
if os.fork() == 0:
    signal.signal(15, signal.SIG_IGN); time.sleep(1000)
return 1
""", 1.0),
    Hostile("a stopped child", """
import os, time
pid = os.fork()
if pid == 0: time.sleep(1000)
os.kill(pid, 19); return 1
""", 1.0),
    Hostile("children that start each other", """
import os, time
if os.fork() == 0:
    os.setsid()
    while True:
        if os.fork(): os._exit(0)
        time.sleep(.01)
return 1
""", 1.0),
    Hostile("a fork that comes back", "import os; os.fork(); return 1", 1.0),
    Hostile("a fork that raises", """
import os
if os.fork() == 0: raise ValueError
return 1
""", 1.0),
    Hostile("many threads", """
import threading, time
for _ in range(50): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
return 1
""", 1.0, stays=True),
]  # fmt: skip

STATE = [
    Hostile("clear the environment", "import os; os.environ.clear(); return 1", 1.0),
    Hostile("another folder", "import os; os.chdir('/'); return 1", 1.0),
    Hostile("change its arguments", "row.clear(); return 1", 1.0),
    Hostile("no imports", "import sys; sys.path.clear(); sys.modules.clear(); return 1", 1.0, stays=True),
    Hostile("no descriptors left", """
import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)); return 1
""", 1.0, stays=True),
    Hostile("no print", "import builtins; builtins.print = None; return 1", 1.0, stays=True),
    Hostile("ignore signals", """
import signal
for s in range(1, 30):
    if s not in (9, 17, 19): signal.signal(s, signal.SIG_IGN)
return 1
""", 1.0, stays=True),
    Hostile("a broken hook at exit", "import atexit; atexit.register(lambda: 1/0); return 1", 1.0),
    Hostile("trace", "import sys; sys.settrace(lambda *a: 1/0); return 1", "raised", stays=True),
    Hostile("patch os.write", "import os; os.write = lambda *a: 1/0; return 1", 1.0, stays=True),
]  # fmt: skip

MEMORY = [
    Hostile("a large array", "bytearray(8 << 30); return 1", "out_of_memory"),
    Hostile("a large text", "return len('a' * 10**10)", "out_of_memory"),
    Hostile("numpy", "import numpy; numpy.ones(1 << 30); return 1", "out_of_memory"),
    Hostile("a growing list", """
x = []
while True: x.append(bytearray(1 << 24))
""", "out_of_memory"),
    Hostile("shared pages, which no limit counts", """
import mmap, time
m = mmap.mmap(-1, 900 << 20)
for i in range(0, 900 << 20, 4096): m[i] = 1
time.sleep(30)
""", "out_of_memory"),
    Hostile("children that each hold a part", """
import os, time
for _ in range(4):
    if os.fork() == 0:
        x = bytearray(b'x') * (300 << 20); time.sleep(30)
time.sleep(30)
""", "out_of_memory"),
]  # fmt: skip

BODIES = [
    *(Hostile(value, f"return {value}", outcome) for value, outcome in VALUES.items()),
    *(Hostile(body, body, outcome) for body, outcome in ERRORS.items()),
    *DEATHS, *HANGS, *OUTPUT, *PROCESSES, *STATE,
]  # fmt: skip
