"""Send a service what means harm, many at a time, and watch its memory and its answers.

    PYTHONPATH=. python benchmarks/hostile.py [--parallel 50] [--requests 200] [--only 16-bit]

Rows for docs/security.md: what was sent, the statuses of the answers, the seconds until all had one, and the largest
resident memory of the process beyond what it had before.
"""

import argparse
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
from PIL import Image
from serving import resident_bytes, running_service

from tests.fuzz.hostile_images import png_of_16_bits

MIB = 2**20


def main() -> None:
    """Print a row for each kind of upload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parallel", type=int, default=50)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--only", default="", help="kinds of upload with this in their name")
    arguments = parser.parse_args()
    print("| sent | answers | seconds | memory beyond the start (MiB) |\n| --- | --- | --- | --- |")
    for name, photo in ((name, photo) for name, photo in _photos().items() if arguments.only in name):
        with running_service() as url, httpx.Client(base_url=url, timeout=600) as client:

            def send(_number: int, client: httpx.Client = client, photo: bytes = photo) -> int:
                try:
                    return client.post("/detect", files={"image": photo}).status_code
                except httpx.TransportError:  # refused while it was being sent
                    return 0

            before = resident_bytes(url)
            peak, seconds, statuses = _watched(url, arguments, send)
            alive = client.get("/readyz").status_code
        answers = ", ".join(f"{count}× {status or 'cut off'}" for status, count in sorted(statuses.items()))
        print(
            f"| {name} | {answers}; then `/readyz` {alive} | {seconds:.0f} | {(peak - before) / MIB:.0f} |", flush=True
        )


def _photos() -> dict[str, bytes]:
    photos = {}
    for mode, form, name in (("RGB", "JPEG", "RGB"), ("RGBA", "PNG", "RGBA"), ("I;16", "PNG", "16-bit grey")):
        file = BytesIO()
        Image.new(mode, (7000, 7000)).save(file, form)
        photos[f"{name} {form}, 49 million pixels in {len(file.getvalue()) // 1000} KB"] = file.getvalue()
    deep = png_of_16_bits(7000, 7000)
    photos[f"16-bit RGBA PNG, 49 million pixels in {len(deep) // 1000} KB"] = deep
    photos["19 MiB that are no photo"] = bytes(19 * MIB)
    return photos


def _watched(url: str, arguments: argparse.Namespace, send: Callable[[int], int]) -> tuple[int, float, Counter[int]]:
    done, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, resident_bytes(url))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.monotonic()
    with ThreadPoolExecutor(arguments.parallel) as pool:
        statuses = Counter(pool.map(send, range(arguments.requests)))
    seconds = time.monotonic() - begin
    done.set()
    watcher.join()
    return peak, seconds, statuses


if __name__ == "__main__":
    main()
