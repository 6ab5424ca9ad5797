"""Recordings of live traffic: datasets of requests as they were sent, written while they arrive and read back in order.

    dataset = Dataset.open("s3://bucket/recordings/feed_ctr/2026-11")
    for row in dataset:                     # in the order of arrival; memory does not grow with the recording
        print(row.arrival_us, row.method, len(row.request))

A dataset is a folder of Parquet files on any filesystem that pyarrow knows, partitioned by model type and hour (UTC):

    model_type=feed_ctr/hour=2026-11-26T18/part-20261126T180502123456Z-3f2a9c1b-00001.parquet

| column | type | is |
| --- | --- | --- |
| `arrival_time` | timestamp[us, UTC] | when the request arrived; never before the row above it |
| `method` | string | the gRPC method, `/inference.GRPCInferenceService/ModelInfer` |
| `request` | binary | the serialized message as it was sent |

A file is written under a temporary name and renamed once it is complete: whoever reads sees complete files only, and a
crash costs the rows that were not in one yet. Each file carries, as key-value metadata, `modelfleet.requests`,
`modelfleet.bytes`, `modelfleet.first_us`, `modelfleet.last_us` and `modelfleet.digest`, the digest over its own rows.

The **digest** of a recording is SHA-256 over all requests in the order of arrival, each preceded by its length in eight
bytes, most significant first. Requests that arrived in the same microsecond are in the order of their files' names,
then of the rows. It can be computed while reading, and two recordings with equal digests replay the same.

pyarrow is imported when a dataset is opened, not before (`pip install modelfleet[recordings]`).
"""

from modelfleet.recordings.layout import Digest, NothingRecorded, RecordingError, is_beneath
from modelfleet.recordings.reader import Dataset, Recorded, Replay, Summary
from modelfleet.recordings.recorder import Limits, Recorder
from modelfleet.recordings.traffic import TrafficRecorder
from modelfleet.recordings.writer import DatasetWriter, Written

__all__ = [
    "Dataset",
    "DatasetWriter",
    "Digest",
    "Limits",
    "NothingRecorded",
    "Recorded",
    "Recorder",
    "RecordingError",
    "Replay",
    "Summary",
    "TrafficRecorder",
    "Written",
    "is_beneath",
]
