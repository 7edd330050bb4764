"""Reads what analysis/export.py wrote: from an MLflow server, and from wandb's offline files."""

import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any


def exported_by_mlflow(server: str, experiment: str) -> dict[str, Any]:
    """Returns the runs of an experiment by name."""
    client = mlflow_client(server)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert len(runs) == len(found)  # each once
    return runs


def mlflow_client(server: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(server)


def history_in_mlflow(server: str, run: Any) -> dict[int, tuple[float, dict[str, float]]]:
    """Returns time and metrics of each step."""
    steps: dict[int, tuple[float, dict[str, float]]] = {}
    for name in run.data.metrics:
        for metric in mlflow_client(server).get_metric_history(run.info.run_id, name):
            seconds, metrics = steps.setdefault(metric.step, (metric.timestamp / 1000, {}))
            assert seconds == metric.timestamp / 1000
            assert name not in metrics
            metrics[name] = metric.value
    return steps


def records_of_wandb(out: Path) -> dict[str, list[Any]]:
    """Returns the records of the offline files by run ID, in the order of `wandb sync`.

    A file has blocks of 32 KiB of chunks, each with checksum, length and type (LevelDB's log): 1 is
    a whole record, 2, 3 and 4 are its first, middle and last part. The first block's header has
    seven more bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    records = defaultdict(list)
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        content, at, parts = path.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
            parts += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # the end of a record
                records[path.stem.removeprefix("run-")].append(Record.FromString(parts))
                parts = b""
    return records


def items(entries: Any) -> dict[str, Any]:
    return {e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in entries}


def history_in_wandb(records: list[Any]) -> dict[int, tuple[float, dict[str, float]]]:
    """Returns time and metrics of each step."""
    steps = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            metrics = items(record.history.item)
            step = metrics.pop("_step", record.history.step.num)
            metrics.pop("_runtime", None)
            assert step not in steps
            steps[step] = (metrics.pop("_timestamp"), metrics)
    return steps
