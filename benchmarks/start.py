"""How long a newcomer waits: from `aggregator dev` to its first answer, on a new and on a used directory.

Usage: python benchmarks/start.py [runs]
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    new, used = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            new.append(seconds_to_answer(directory))
            used.append(seconds_to_answer(directory))
    result = {
        "runs": runs,
        "new_directory_seconds": round(statistics.median(new), 3),
        "used_directory_seconds": round(statistics.median(used), 3),
        "slowest_seconds": round(max(new + used), 3),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def seconds_to_answer(directory: str) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cli", "dev", "--port", str(port), "--data-dir", f"{directory}/data"]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                    return time.monotonic() - started
            except OSError:
                if process.poll() is not None:
                    sys.exit("aggregator dev ended before it answered")
                time.sleep(0.005)
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main()
