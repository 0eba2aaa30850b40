"""What must happen before torch is imported: note the time, and say how threads wait for each other.

Decoding one token runs some 120 parallel loops of 50 to 200 microseconds. Between two of them GNU OpenMP's
threads spin. By default they spin so long that, once another program wants the core too, a loop may wait for
a whole time slice (seven times slower, measured); with OMP_WAIT_POLICY=PASSIVE not at all, so that every loop
pays for waking a thread (a third slower). Spinning for some tens of microseconds keeps most of both.
"""

import os
import time

STARTED = time.perf_counter()

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
