"""`_start.py LAUNCHER COMMAND…` becomes COMMAND, which Linux asks to save and leave when its launcher dies.

By SIGTERM: it may come once for each thread of the launcher, and a second SIGINT would end a run that saves.
"""

import ctypes
import os
import signal
import sys

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a launcher in the background ignores it, and a job would inherit that
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit(128 + signal.SIGTERM)  # it is dead already
    os.execv(sys.argv[2], sys.argv[2:])
