"""What imports cost a fresh process: `python -m benchmarks.speed.imports MODULE...` says how many seconds they took.

The interpreter's own start is not in it.
"""

import sys
import time

if __name__ == "__main__":
    _BEGAN = time.perf_counter()
    for _name in sys.argv[1:]:
        __import__(_name)
    sys.stdout.write(f"{time.perf_counter() - _BEGAN}\n")
    sys.stdout.flush()
