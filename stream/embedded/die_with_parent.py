"""Run as a script: become another program that the kernel kills when our parent dies.

`python -I -S die_with_parent.py PARENT_PID PROGRAM [ARGUMENT ...]`

On Linux the parent-death signal (prctl(2), PR_SET_PDEATHSIG) outlives the exec, so a server started this way never
survives the process that started it, not even one that was killed with SIGKILL. It is a program of its own because
`subprocess`'s `preexec_fn` may deadlock in a process with threads. Elsewhere it only becomes the program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Arm the parent-death signal, then exec `argv[1:]`; exit 1 when the parent (`argv[0]`) is gone already."""
    parent_pid, program = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent_pid:  # it died between its fork and our prctl: nobody would ever stop the program
            sys.exit(1)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
