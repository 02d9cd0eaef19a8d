"""numba behind one typed decorator.

A kernel calls only kernels of its own file: numba's cache on disk notices a change of the file that holds the caller,
not of the one that holds the callee. Fast-math stays off: sums keep the order that is written, so bits never change.
Division by 0 gives what numpy gives; a check for it would keep loops from being vectorised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function at its first call, keep the machine code on disk, and run it without the GIL."""
    return cast(Callable[P, R], numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")(function))


def _prefetch(context: Any, array: Any, index: Any) -> tuple[Any, Any]:
    """Ask for the cache line that holds ``array.flat[index]`` of a C-contiguous array, without waiting for it."""

    def emit(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = target.make_array(signature.args[0])(target, builder, arguments[0]).data
        slot = builder.bitcast(builder.gep(address, [arguments[1]]), cgutils.voidptr_t)
        word = ir.IntType(32)
        hint = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        call = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, hint, "llvm.prefetch.p0"
        )
        builder.call(call, [slot, word(0), word(3), word(1)])  # for reading, into every level, data
        return target.get_dummy_value()

    return numba.types.void(array, numba.types.int64), emit


prefetch = cast(Callable[[NDArray[Any], int | np.signedinteger], None], intrinsic(_prefetch))
