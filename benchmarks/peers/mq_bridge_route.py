"""Runs one route of mq-bridge until SIGTERM. Started with the Python of mq-bridge's own environment.

Usage: python mq_bridge_route.py CONFIGURATION.json
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import mq_bridge

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
route = mq_bridge.Route.from_config(json.loads(Path(sys.argv[1]).read_text()))
route.start()
stop.wait()
route.stop()
route.join()
