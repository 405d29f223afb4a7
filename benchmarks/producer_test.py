"""The broker's own producer test, ProducerPerformance: records straight into the log, without HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from benchmarks.gateway_stage import GatewayStage
from benchmarks.rounds import Figures, LeftOut
from benchmarks.servers import run
from tests.support.kafka_process import kafka_jars

_RECORDS: Final = 400_000


class ProducerTest:
    """Said in the table of 1,000 events per request, to which it comes closest."""

    name = "limit: ProducerPerformance"
    settings: Mapping[str, str] = {
        "records": f"{_RECORDS:,}, the same events",
        "producer": "acks=all compression.type=snappy linger.ms=5 batch.size=131072",
    }

    def __init__(self, stage: GatewayStage) -> None:
        self._stage = stage

    def prepare(self) -> None:
        """Write the records where it reads them."""
        self._payloads = self._stage.directory / "payloads.ndjson"
        self._payloads.write_bytes(b"\n".join(event.value for event in self._stage.events) + b"\n")

    def measure(self) -> Figures:
        with self._stage.topic() as topic:
            command = ["java", "-Xmx512m", "-cp", f"{kafka_jars()}/*"]
            command += ["org.apache.kafka.tools.ProducerPerformance", "--topic", topic]
            command += ["--num-records", str(_RECORDS), "--throughput", "-1"]
            command += ["--payload-file", str(self._payloads)]
            command += ["--bootstrap-server", self._stage.broker.bootstrap]
            command += ["--command-property", *self.settings["producer"].split()]
            printed = run(command, timeout=120)
            if self._stage.broker.end_offset(topic) != _RECORDS:
                raise LeftOut("ProducerPerformance did not append what it was told to.")
        found = re.search(r"([\d.]+) records/sec.*?([\d.]+) ms 50th.*?([\d.]+) ms 99th", printed, re.DOTALL)
        if found is None:
            raise LeftOut(f"ProducerPerformance said nothing that can be read: {printed[-300:]}")
        return {"events_per_second_1000": float(found[1])}
