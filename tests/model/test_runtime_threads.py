"""A network may be called by many threads from its first moment."""

import subprocess
import sys

FIRST_CALLS_MEET = """
import sys
import threading
import numpy as np
from model.pipeline import load_networks

networks = load_networks()
pixels = np.zeros((64, 64, 3), np.uint8)
start = threading.Barrier(8)
sys.setswitchinterval(1e-6)

def work():
    start.wait()
    networks.detector.detect(pixels)
    networks.extractor.embed(np.zeros((1, 112, 112, 3), np.uint8))

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_first_calls_of_many_threads_do_not_lock_each_other_out() -> None:
    # What can go wrong happens once in a process, so it takes several processes to meet it.
    for _ in range(5):
        subprocess.run([sys.executable, "-c", FIRST_CALLS_MEET], check=True, timeout=60)
