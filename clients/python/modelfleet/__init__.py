"""modelfleet: a control plane for fleets of machine-learning models.

    async with modelfleet.AsyncClient("127.0.0.1:8460") as client:
        model_type = await client.registry.get_model_type(name="modelTypes/feed_ctr")

`Client` is the same without `async`. Errors are the exceptions of `modelfleet.errors`. `Snapshot` and `AsyncSnapshot`
keep the fleet in memory, for programs that ask it at every request. `TrafficRecorder` records what a gRPC client sends;
`StabilityReporter` reports predictions and labels.
"""

from typing import TYPE_CHECKING, Any

from modelfleet.client import AsyncClient, Client
from modelfleet.errors import ModelfleetError
from modelfleet.transport import Tls

if TYPE_CHECKING:
    from modelfleet.recordings import TrafficRecorder
    from modelfleet.reporter import StabilityReporter
    from modelfleet.snapshot import AsyncSnapshot, Snapshot

__all__ = [
    "AsyncClient",
    "AsyncSnapshot",
    "Client",
    "ModelfleetError",
    "Snapshot",
    "StabilityReporter",
    "Tls",
    "TrafficRecorder",
]


def __getattr__(name: str) -> Any:
    # They bring the registry's messages along, which most programs load when they need them.
    if name in {"AsyncSnapshot", "Snapshot"}:
        from modelfleet import snapshot

        return getattr(snapshot, name)
    if name == "TrafficRecorder":
        from modelfleet.recordings import TrafficRecorder

        return TrafficRecorder
    if name == "StabilityReporter":
        from modelfleet.reporter import StabilityReporter

        return StabilityReporter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
