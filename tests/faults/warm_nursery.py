"""A warm interpreter that forks a fresh process for each script: without the time a start takes.

Orders come as JSON lines on stdin, each is answered with a number. `warm`: Python that this
interpreter itself runs, imports above all (0). `script`: a child runs it with `arguments`, on
the pipes `out` and `err` (its process id). `wait`: for a child (its exit status, as `subprocess`
tells it).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any


def raise_child(order: dict[str, Any]) -> int:
    pipes = [os.open(order[name], os.O_WRONLY) for name in ("out", "err")]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, pipe in enumerate(pipes, 1):
                os.dup2(pipe, number)
                os.close(pipe)
            sys.argv[1:] = order["arguments"]
            exec(order["script"], {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    for pipe in pipes:
        os.close(pipe)
    return child


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "warm" in order:
            exec(order["warm"], {})
            answer = 0
        elif "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = raise_child(order)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
