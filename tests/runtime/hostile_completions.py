"""Completions that a careless reward evaluates, and reward files that mean ill when they are imported.

The outcome of a completion is that of the call, which is never the reward of 1 that it is after; that of a
file is what its error says.
"""

from tests.runtime.hostile_rewards import Hostile

WRITE_ALL = """
import os
def all_write(line):
    for d in range(3, 64):
        try: os.write(d, line)
        except OSError: pass
"""
FRAMES = """
import sys
def strings():
    seen, frame = [], sys._getframe()
    while frame:
        things = [*frame.f_locals.values(), *frame.f_globals.values()]
        for thing in things:
            seen += [thing] if isinstance(thing, (bytes, str)) else []
            for cell in getattr(thing, '__closure__', None) or ():
                try: seen.append(cell.cell_contents)
                except ValueError: pass
            seen += list(vars(thing).values()) if hasattr(thing, '__dict__') else []
        frame = frame.f_back
    for module in list(sys.modules.values()):
        seen += list(getattr(module, '__dict__', {}).values())
    return [s.encode() if isinstance(s, str) else s for s in seen if isinstance(s, (bytes, str))]
"""
COMPLETIONS = [
    Hostile("guess the reply", WRITE_ALL + 'all_write(b\'{"reward": 1.0}\' + b\'\\n\')', "forged"),
    Hostile("guess number and reply", WRITE_ALL + """
all_write(b'{"number": 1, "reward": 1.0}\\n')
""", "forged"),
    Hostile("guess and leave", WRITE_ALL + """
all_write(b'{"reward": 1.0}' + b'\\n'); os._exit(0)
""", "forged"),
    Hostile("guess a nonce", WRITE_ALL + """
all_write(b'0' * 32 + b' ' + b'{"reward": 1.0}' + b'\\n')
""", "forged"),
    Hostile("no nonce", WRITE_ALL + 'all_write(b\' \' + b\'{"reward": 1.0}\' + b\'\\n\')', "forged"),
    Hostile("garbage", WRITE_ALL + "all_write(b'\\xff\\x00\\n')", "forged"),
    Hostile("an empty line", WRITE_ALL + "all_write(b'\\n')", "forged"),
    Hostile("half a line", WRITE_ALL + "all_write(b'{')", "forged"),
    Hostile("a flood", WRITE_ALL + "all_write(b'x' * 60000); all_write(b'\\n')", "forged"),
    Hostile("every text that frames and modules hold", WRITE_ALL + FRAMES + """
for s in strings():
    if len(s) == 32:
        all_write(s + b' ' + b'{"reward": 1.0}' + b'\\n')
""", (0.0, "forged")),
    Hostile("every object", WRITE_ALL + """
import gc
for o in gc.get_objects(): pass
""", "raised"),
    Hostile("who refers to it", "import gc, sys; gc.get_referrers(sys)", "raised"),
    Hostile("what frames refer to", "import gc, sys; gc.get_referents(sys._getframe(3))", "raised"),
    Hostile("all threads", "import sys; sys._current_frames()", "raised"),
    Hostile("trace every call", WRITE_ALL + """
import sys
def seen(frame, event, arg):
    for v in frame.f_locals.values():
        if isinstance(v, bytes) and len(v) == 32: all_write(v + b' ' + b'{"reward": 1.0}' + b'\\n')
    return seen
sys.settrace(seen); sys.setprofile(seen)
""", 0.0, stays=True),
    Hostile("alarms that look at the frame", WRITE_ALL + FRAMES + """
import signal
def seen(number, frame):
    for s in strings():
        if len(s) == 32: all_write(s + b' ' + b'{"reward": 1.0}' + b'\\n')
signal.signal(14, seen); signal.setitimer(0, 1e-4, 1e-4)
""", (0.0, "forged"), stays=True),
    Hostile("steal the next request", """
import os
for d in range(3, 64):
    try: os.set_blocking(d, False); os.read(d, 65536)
    except OSError: pass
""", (0.0, "died"), stays=True),
    Hostile("replace the reply's pipe", """
import os
r, w = os.pipe()
for d in range(3, r):
    os.dup2(w, d)
""", ("died", "timed_out"), quick=True),
    Hostile("a thread that answers the next call", WRITE_ALL + """
import threading, time
def later():
    time.sleep(.05)
    all_write(b'{"reward": 1.0}' + b'\\n')
threading.Thread(target=later).start(); time.sleep(.5)
""", "forged"),
    Hostile("a fork that answers", WRITE_ALL + """
if os.fork() == 0:
    all_write(b'{"reward": 1.0}' + b'\\n'); os._exit(0)
os.wait()
""", "forged"),
    Hostile("say it aloud", """
import sys; sys.stdout.write('{"reward": 1.0}\\n'); sys.stderr.write('{"reward": 1.0}\\n')
""", 0.0),
    Hostile("leave early", "raise SystemExit(0)", "raised"),
    Hostile("patch os.write", """
import os; real = os.write; os.write = lambda d, b: real(d, b.replace(b'0.0', b'1.0'))
""", 0.0, stays=True),
    Hostile("equal to everything", """
class A:
    def __eq__(s, o): return True
answer = A()
""", 0.0),
]  # fmt: skip

IMPORTS = [
    Hostile("exits", "import os; os._exit(0)", "does not import: the process ended with exit code 0"),
    Hostile("answers", WRITE_ALL + 'all_write(b\'{"problem": ""}\\n\')', "wrote to Pippin's own pipe"),
    Hostile("raises escapes", """
raise ValueError('\\x1b[2J\\u202e')
""", "does not import: ValueError: \\x1b[2J\\u202e"),
    Hostile("name of escapes", "raise type('\\x1b[1m', (Exception,), {})", "does not import: \\x1b[1m"),
    Hostile("holds too much", "x = bytearray(8 << 30)", "does not import: MemoryError"),
    Hostile("is no module any more", "import sys; sys.modules.clear(); reward = 3", "found a int"),
]  # fmt: skip
