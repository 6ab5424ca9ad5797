"""Loans."""

from __future__ import annotations

from datetime import datetime

from modelfleet.capacity.v1 import loans_pb2 as pb
from modelfleetd.capacity.domain.loan import Loan, Offer
from modelfleetd.kit.codec import from_proto, timestamp_from_proto, to_proto


def offer_from_proto(message: pb.Loan, now: datetime) -> Offer:
    return from_proto(message, Offer, expire_time=timestamp_from_proto(message.expire_time), now=now)


def loan_to_proto(loan: Loan) -> pb.Loan:
    return to_proto(loan, pb.Loan)
