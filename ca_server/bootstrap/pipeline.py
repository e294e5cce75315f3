"""Composes the pipeline, for a core and for rehearsals: what decides is configured in one place."""

from collections.abc import Callable
from datetime import timedelta

from ca_server.bootstrap import metrics
from ca_server.bootstrap.stores import Stores
from ca_server.core.admission import Admission, Ages
from ca_server.core.audit import EventFactory
from ca_server.core.issuance import Issuance
from ca_server.core.issuers import IssuerRegistry
from ca_server.core.lint import Linter
from ca_server.core.profiles import ProfileBook
from ca_server.domain.enrollment import Fence
from ca_server.settings import Settings

CAA_TO_SIGNATURE = timedelta(minutes=5)
"""Between a front's check of CAA records and the signature, waits and other nodes' clocks included."""


def compose_pipeline(
    settings: Settings,
    stores: Stores,
    issuers: IssuerRegistry,
    book: ProfileBook,
    linter: Linter,
    events: EventFactory,
    fence: Callable[[], Fence],
) -> Issuance:
    """The pipeline of these settings over these stores."""
    return Issuance(
        store=stores.issuance,
        audit=stores.audit,
        admission=Admission(
            store=stores.issuance,
            issuers=issuers,
            profiles=book,
            bound_key=stores.eab.bound_key,
            ages=Ages(
                evidence=timedelta(seconds=settings.acme.authorization_lifetime + settings.acme.order_lifetime),
                caa=timedelta(seconds=settings.acme.caa_max_age) + CAA_TO_SIGNATURE,
                auto_renewal=timedelta(seconds=settings.acme.auto_renewal.max_duration),
                renewed=frozenset(settings.acme.auto_renewal.profiles),
            ),
        ),
        linter=linter,
        events=events,
        fence=fence,
        observe_stage=metrics.stage,
        observe_outcome=metrics.issuance,
    )
