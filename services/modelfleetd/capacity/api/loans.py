"""Loans: capacity of one pool that serves for another."""

from __future__ import annotations

from modelfleet.capacity.v1 import loans_pb2 as pb
from modelfleetd import names
from modelfleetd.capacity.api.base import Base, Context, actor, before, new_name
from modelfleetd.capacity.store import loans
from modelfleetd.capacity.store.rows import change
from modelfleetd.capacity.wire import loans as wire
from modelfleetd.kit import paging
from modelfleetd.kit.db import Connection


class Loans(Base):
    """Implements the methods of loans."""

    async def CreateLoan(self, request: pb.CreateLoanRequest, context: Context) -> pb.Loan:
        offer = wire.offer_from_proto(request.loan, self._clock.now())
        name, by = new_name(names.LOAN, "n"), actor()

        async def act(conn: Connection) -> pb.Loan:
            return wire.loan_to_proto(await loans.insert(conn, name, offer, by))

        return await change(self._database, request, pb.Loan, act)

    async def GetLoan(self, request: pb.GetLoanRequest, context: Context) -> pb.Loan:
        return wire.loan_to_proto(await loans.get(self._database, request.name))

    async def ListLoans(self, request: pb.ListLoansRequest, context: Context) -> pb.ListLoansResponse:
        page = paging.read(request, int)
        found = await loans.page(self._database, request.pool, request.active_only, before(page), page.size + 1)
        shown, token = page.answer(found, lambda row: (row.sequence,), lambda row: wire.loan_to_proto(row.loan))
        return pb.ListLoansResponse(loans=shown, next_page_token=token)

    async def EndLoan(self, request: pb.EndLoanRequest, context: Context) -> pb.Loan:
        async def act(conn: Connection) -> pb.Loan:
            return wire.loan_to_proto(await loans.end(conn, request.name))

        return await change(self._database, request, pb.Loan, act)
