"""A name server for `test.` on loopback: every name is 127.0.0.1, TXT and CAA records come from files."""

from pathlib import Path

from dnslib import CAA, QTYPE, RCODE, RR, SOA, TXT, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer

ZONE = "test."


class _Resolver(BaseResolver):
    def __init__(self, records: Path) -> None:
        self._records = records

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        reply = request.reply(ra=1, aa=1)
        reply.header.ad = int(request.header.ad and (self._records / "authenticated").exists())
        name = str(request.q.qname).lower()
        if name != ZONE and not name.endswith("." + ZONE):
            reply.header.rcode = RCODE.REFUSED
            return reply
        kind = QTYPE[request.q.qtype]
        if (self._records / f"{name.rstrip('.')}+{kind}+SERVFAIL").exists():
            reply.header.rcode = RCODE.SERVFAIL
            return reply
        if kind == "A":
            reply.add_answer(RR(name, QTYPE.A, ttl=0, rdata=A("127.0.0.1")))
        elif kind == "TXT":
            for value in self._values(name):
                reply.add_answer(RR(name, QTYPE.TXT, ttl=0, rdata=TXT(value.encode())))
        elif kind == "CAA":
            for value in self._lines(f"{name.rstrip('.')}+CAA"):
                flags, tag, text = value.split(" ", 2)
                reply.add_answer(RR(name, QTYPE.CAA, ttl=0, rdata=CAA(int(flags), tag, text)))
        soa = RR(ZONE, QTYPE.SOA, ttl=0, rdata=SOA("ns." + ZONE, "hostmaster." + ZONE, (1, 60, 60, 60, 0)))
        if kind == "SOA" and name == ZONE:
            reply.add_answer(soa)
        elif not reply.rr:
            reply.add_auth(soa)
        return reply

    def _values(self, name: str) -> list[str]:
        return [word for line in self._lines(name.rstrip(".")) for word in line.split()]

    def _lines(self, name: str) -> list[str]:
        file = self._records / name
        return file.read_text("ascii").splitlines() if file.is_file() else []


class NameServer:
    """Serves UDP and TCP on one port until `close`.

    A file `records/NAME` holds the TXT values of NAME, one a line, `records/NAME+CAA` its CAA records, and with
    `records/NAME+TYPE+SERVFAIL` that question fails. With `records/authenticated` it says of all that it authenticated
    it, to those who ask.
    """

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

    def add_caa(self, name: str, record: str) -> None:
        """A record as `FLAGS TAG VALUE`."""
        self.add(f"{name}+CAA", record)

    def fail(self, name: str, kind: str) -> None:
        (self.records / f"{name}+{kind}+SERVFAIL").touch()

    def authenticate(self) -> None:
        (self.records / "authenticated").touch()

    def remove(self, name: str) -> None:
        (self.records / name).unlink(missing_ok=True)

    def close(self) -> None:
        for server in self._servers:
            server.stop()
            server.server.server_close()
