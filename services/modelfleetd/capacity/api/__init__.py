"""Capacity's methods: parse, decide, store, reply. A file per concept."""

from __future__ import annotations

from modelfleetd.capacity.api.certificates import Certificates
from modelfleetd.capacity.api.demand import DemandMethods
from modelfleetd.capacity.api.estimates import Estimates
from modelfleetd.capacity.api.flavors import Flavors
from modelfleetd.capacity.api.loadtests import LoadTests
from modelfleetd.capacity.api.loans import Loans
from modelfleetd.capacity.api.policies import Policies
from modelfleetd.capacity.api.pools import Pools
from modelfleetd.capacity.api.recordings import Recordings
from modelfleetd.capacity.api.reservations import Reservations
from modelfleetd.capacity.api.usage import Usage


class CapacityServicer(
    Flavors, Pools, Loans, Usage, Reservations, Recordings, LoadTests, Certificates, DemandMethods, Estimates, Policies
):
    """All of them."""
