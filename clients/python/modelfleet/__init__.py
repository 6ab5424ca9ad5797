"""modelfleet: a control plane for fleets of machine-learning models.

    async with modelfleet.AsyncClient("127.0.0.1:8460") as client:
        model_type = await client.registry.get_model_type(name="modelTypes/feed_ctr")

`Client` is the same without `async`. Errors are the exceptions of `modelfleet.errors`.
"""

from modelfleet.client import AsyncClient, Client
from modelfleet.errors import ModelfleetError
from modelfleet.transport import Tls

__all__ = ["AsyncClient", "Client", "ModelfleetError", "Tls"]
