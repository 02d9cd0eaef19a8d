"""Pages of memory provided before they are needed, so that the one who needs them does not wait for them.

The system clears a page when it is first written, and a virtual machine may have to find it first: some 10 ms for a
large page, in the middle of a learning step. A thread that writes to the page before takes that upon itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from learners.kernel import kernel

_PAGE = 4096
_SMALL = 8 << 20  # bytes; arrays below it grow without help
_MOST_AHEAD = 64 << 20  # bytes: what is provided too soon is memory taken for nothing


def _write_back(context: Any, array: Any, index: Any) -> tuple[Any, Any]:
    """Write to the byte ``array.flat[index]`` without changing it, whoever else writes to it at this moment."""

    def emit(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = target.make_array(signature.args[0])(target, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(address, [arguments[1]]), cgutils.voidptr_t)
        zero = ir.Constant(ir.IntType(8), 0)
        builder.cmpxchg(place, zero, zero, "monotonic", "monotonic")  # 0 becomes 0, anything else stays
        return target.get_dummy_value()

    return numba.types.void(array, numba.types.int64), emit


_written = cast(Callable[[NDArray[Any], int], None], intrinsic(_write_back))


@kernel
def touch(memory: NDArray[np.uint8], first: int, last: int) -> None:
    """Have the pages of the bytes [first, last) provided; their content stays."""
    for at in range(first, last, _PAGE):
        _written(memory, at)


class Ahead:
    """Keeps the pages behind the used part of a growing array provided."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._memory = array.reshape(-1).view(np.uint8)
        self.provided = 0

    def reach(self, used: int, ahead: int) -> None:
        """The first ``used`` bytes are in use: have ``ahead`` more provided, where less than half of that is."""
        if used < _SMALL or self.provided >= used + ahead // 2:
            return
        first, self.provided = max(used, self.provided), min(used + min(ahead, _MOST_AHEAD), len(self._memory))
        threading.Thread(target=touch, args=(self._memory, first, self.provided), daemon=True).start()
