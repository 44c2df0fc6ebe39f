"""`_start.py LAUNCHER COMMAND…` becomes COMMAND, which Linux asks to save and leave (SIGINT) when its launcher dies."""

import ctypes
import os
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # a launcher in the background ignores it, and a job would inherit that
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(128 + signal.SIGINT)  # it is dead already
os.execv(sys.argv[2], sys.argv[2:])
