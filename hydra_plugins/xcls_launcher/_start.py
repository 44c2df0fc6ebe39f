"""`_start.py LAUNCHER COMMAND…` becomes COMMAND. If the launcher dies, Linux sends it SIGTERM, and it saves and ends.

Not SIGINT: the signal may come once per thread of the launcher, and a second SIGINT would end a run while it saves.
"""

import ctypes
import os
import signal
import sys

if __name__ == "__main__":
    # A job inherits the setting of a background launcher, which ignores it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit(128 + signal.SIGTERM)  # the launcher is already dead
    os.execv(sys.argv[2], sys.argv[2:])
