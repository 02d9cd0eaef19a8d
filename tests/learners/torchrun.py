"""Two processes under torchrun, on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

PROCESSES = 2


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python *arguments`` in each process to its end; output of all of them together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=150, check=False
    )
