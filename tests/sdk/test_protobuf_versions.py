"""The SDK lives in users' serving processes, beside whatever protobuf these have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROTOBUF_7 = Path(__file__).parents[2] / "build" / "protobuf7"

PROGRAM = """
import google.protobuf, sys
import modelfleet
from google.protobuf import descriptor_pool
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.registry.v1 import registry_pb2

launch = launcher_pb2.Launch(name="launches/a", current_step=2)
assert launcher_pb2.Launch.FromString(launch.SerializeToString()) == launch
assert callable(modelfleet.Client) and callable(modelfleet.AsyncClient)
try:
    descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")
except KeyError:
    pass
else:
    sys.exit("the SDK has registered the Open Inference Protocol's messages, which collide with tritonclient's")
print(google.protobuf.__version__)
"""


def version_of_protobuf_that_the_sdk_ran_on(*path: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_sdk_runs_on_the_locked_protobuf() -> None:
    assert version_of_protobuf_that_the_sdk_ran_on().startswith("6.33.")


def test_the_sdk_runs_on_protobuf_7() -> None:
    assert PROTOBUF_7.is_dir(), "made by `make test`; alone: make build/protobuf7/.installed"
    assert version_of_protobuf_that_the_sdk_ran_on(str(PROTOBUF_7)).startswith("7.")
