"""Run by torchrun in ``test_distributed``: each process writes what it received into the folder it is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from learners.training.distributed import process_group, share_of

with process_group() as group:
    sums = np.arange(5, dtype=np.float32) * (group.rank + 1)
    group.all_reduce(sums)
    share = share_of(group, 7)
    said = {"sums": sums.tolist(), "share": [share.start, share.stop], "ranks": group.all_gather(group.rank)}
    (Path(sys.argv[1]) / f"{group.rank}.json").write_text(json.dumps(said))
