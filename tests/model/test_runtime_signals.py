"""A signal finds its handler whether networks are loaded or freed."""

import subprocess
import sys

SIGNAL_AFTER_FREEING = """
import gc
import os
import signal
from model.pipeline import load_networks

networks = load_networks(threads=1)
del networks
gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
print("alive")
"""


def test_a_signal_after_the_last_network_was_freed_is_handled() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNAL_AFTER_FREEING], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout.split()) == (0, ["handled", "alive"])
