"""Run by torchrun in ``test_workers``: each worker writes what it received into the folder it is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from learners.training.distributed import joined, share_of

with joined() as workers:
    sums = np.arange(5, dtype=np.float32) * (workers.rank + 1)
    workers.add(sums)
    share = share_of(workers, 7)
    said = {"sums": sums.tolist(), "share": [share.start, share.stop], "ranks": workers.gather(workers.rank)}
    (Path(sys.argv[1]) / f"{workers.rank}.json").write_text(json.dumps(said))
