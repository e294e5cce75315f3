"""An authoritative name server for `test.` on loopback: every name is 127.0.0.1, TXT records come from files."""

from pathlib import Path

from dnslib import QTYPE, RCODE, RR, SOA, TXT, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer

ZONE = "test."


class _Resolver(BaseResolver):
    def __init__(self, records: Path) -> None:
        self._records = records

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        reply = request.reply(ra=1, aa=1)
        name = str(request.q.qname).lower()
        if name != ZONE and not name.endswith("." + ZONE):
            reply.header.rcode = RCODE.REFUSED
            return reply
        kind = QTYPE[request.q.qtype]
        if kind == "A":
            reply.add_answer(RR(name, QTYPE.A, ttl=0, rdata=A("127.0.0.1")))
        elif kind == "TXT":
            for value in self._values(name):
                reply.add_answer(RR(name, QTYPE.TXT, ttl=0, rdata=TXT(value.encode())))
        soa = RR(ZONE, QTYPE.SOA, ttl=0, rdata=SOA("ns." + ZONE, "hostmaster." + ZONE, (1, 60, 60, 60, 0)))
        if kind == "SOA" and name == ZONE:
            reply.add_answer(soa)
        elif not reply.rr:
            reply.add_auth(soa)
        return reply

    def _values(self, name: str) -> list[str]:
        file = self._records / name.rstrip(".")
        return file.read_text("ascii").split() if file.is_file() else []


class NameServer:
    """Serves UDP and TCP on one port until `close`. A file `records/NAME` holds the TXT values of NAME, one a line."""

    def __init__(self, records: Path, port: int) -> None:
        self.records = records
        self.port = port
        resolver = _Resolver(records)
        self._servers = [
            DNSServer(resolver, address="127.0.0.1", port=port, tcp=tcp, logger=DNSLogger(log="-request,-reply,-error"))
            for tcp in (False, True)
        ]
        for server in self._servers:
            server.start_thread()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, name: str, value: str) -> None:
        with (self.records / name).open("a", encoding="ascii") as file:
            file.write(value + "\n")

    def remove(self, name: str) -> None:
        (self.records / name).unlink(missing_ok=True)

    def close(self) -> None:
        for server in self._servers:
            server.stop()
            server.server.server_close()
