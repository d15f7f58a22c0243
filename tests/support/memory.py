"""How much memory an action takes."""

import gc
import tracemalloc
from collections.abc import Callable


def grown_bytes(action: Callable[[], object]) -> int:
    """Return how much more memory is in use after an action, whose result is kept meanwhile."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = action()
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
        del kept
        return grown
    finally:
        tracemalloc.stop()
