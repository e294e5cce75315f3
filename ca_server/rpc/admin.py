"""The operator's port over the core's admin socket: its operations, and the client that the command line uses."""

from pathlib import Path
from typing import cast

from ca_server.core.ports import (
    AdminPort,
    BlockKey,
    CreatedEab,
    CreateEab,
    CreateIncident,
    CrossCertificate,
    DisableEab,
    Done,
    EndIncident,
    Health,
    ImportCrossCertificate,
    IssuerCsr,
    Ping,
    PublishCrl,
    Reload,
    Reloaded,
    ResetLimit,
    RevokeAccount,
    SignIssuerCsr,
    UnblockKey,
    UpdateEab,
)
from ca_server.domain.bindings import EabKey
from ca_server.domain.certificates import Crl, RevocationRequest, RevokedCertificate
from ca_server.domain.incidents import Incident
from ca_server.rpc.client import PortClient
from ca_server.rpc.messages import PORT_VERSION, Operation, OperationTable

ADMIN_OPERATIONS = OperationTable(
    "admin",
    PORT_VERSION,
    (
        Operation("revoke", RevocationRequest, RevokedCertificate, idempotent=False),
        Operation("publish_crl", PublishCrl, Crl, idempotent=True, timeout=120.0),
        Operation("create_eab", CreateEab, CreatedEab, idempotent=False),
        Operation("update_eab", UpdateEab, EabKey, idempotent=True),
        Operation("disable_eab", DisableEab, Done, idempotent=False, timeout=120.0),
        Operation("revoke_account", RevokeAccount, Done, idempotent=False),
        Operation("block_key", BlockKey, Done, idempotent=False),
        Operation("unblock_key", UnblockKey, Done, idempotent=False),
        Operation("reset_limit", ResetLimit, Done, idempotent=False),
        Operation("sign_issuer_csr", SignIssuerCsr, IssuerCsr, idempotent=False),
        Operation("import_cross_certificate", ImportCrossCertificate, CrossCertificate, idempotent=False),
        Operation("create_incident", CreateIncident, Incident, idempotent=False),
        Operation("end_incident", EndIncident, Done, idempotent=False),
        Operation("reload", Reload, Reloaded, idempotent=True),
        Operation("ping", Ping, Health, idempotent=True, timeout=5.0),
    ),
)


class RpcAdminPort(AdminPort):
    """AdminPort over the admin socket of a running core."""

    def __init__(self, client: PortClient) -> None:
        self._client = client

    @classmethod
    def at(cls, path: Path) -> "RpcAdminPort":
        """The port of the core whose admin socket is at `path`."""
        return cls(PortClient(path, ADMIN_OPERATIONS))

    async def revoke(self, request: RevocationRequest) -> RevokedCertificate:
        return cast(RevokedCertificate, await self._client.call("revoke", request))

    async def publish_crl(self, request: PublishCrl) -> Crl:
        return cast(Crl, await self._client.call("publish_crl", request))

    async def create_eab(self, request: CreateEab) -> CreatedEab:
        return cast(CreatedEab, await self._client.call("create_eab", request))

    async def update_eab(self, request: UpdateEab) -> EabKey:
        return cast(EabKey, await self._client.call("update_eab", request))

    async def disable_eab(self, request: DisableEab) -> Done:
        return cast(Done, await self._client.call("disable_eab", request))

    async def revoke_account(self, request: RevokeAccount) -> Done:
        return cast(Done, await self._client.call("revoke_account", request))

    async def block_key(self, request: BlockKey) -> Done:
        return cast(Done, await self._client.call("block_key", request))

    async def unblock_key(self, request: UnblockKey) -> Done:
        return cast(Done, await self._client.call("unblock_key", request))

    async def reset_limit(self, request: ResetLimit) -> Done:
        return cast(Done, await self._client.call("reset_limit", request))

    async def sign_issuer_csr(self, request: SignIssuerCsr) -> IssuerCsr:
        return cast(IssuerCsr, await self._client.call("sign_issuer_csr", request))

    async def import_cross_certificate(self, request: ImportCrossCertificate) -> CrossCertificate:
        return cast(CrossCertificate, await self._client.call("import_cross_certificate", request))

    async def create_incident(self, request: CreateIncident) -> Incident:
        return cast(Incident, await self._client.call("create_incident", request))

    async def end_incident(self, request: EndIncident) -> Done:
        return cast(Done, await self._client.call("end_incident", request))

    async def reload(self, request: Reload) -> Reloaded:
        return cast(Reloaded, await self._client.call("reload", request))

    async def ping(self, ping: Ping) -> Health:
        return cast(Health, await self._client.call("ping", ping))

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()
