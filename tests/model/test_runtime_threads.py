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


THREADS_END_WITH_THE_PROCESS = """
import threading
import numpy as np
from model.pipeline import load_networks

extractor = load_networks(threads=1).extractor
done, end = threading.Semaphore(0), threading.Event()

def work():
    extractor.embed(np.zeros((1, 112, 112, 3), np.uint8))
    done.release()
    end.wait()

for _ in range(48):
    threading.Thread(target=work, daemon=True).start()
for _ in range(48):
    done.acquire()
end.set()
"""


def test_threads_that_end_while_the_process_does_do_not_abort_it() -> None:
    for _ in range(5):  # what can go wrong is a matter of chance
        subprocess.run([sys.executable, "-c", THREADS_END_WITH_THE_PROCESS], check=True, timeout=60)
