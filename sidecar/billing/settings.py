"""Configuration of billing: where Lago is, what its webhooks are signed with, how often funds and usage are
compared."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from sidecar.metering.settings import BaseUrl, Token

# The ledger's own bounds (ledger.accounts.account_spec), repeated since reading a configuration loads nothing that
# runs.
Mode = Literal["prepaid", "overage", "postpaid"]
RATE_MIN, RATE_MAX = Decimal("0.001"), Decimal(1_000_000)
BURST_MAX = 1_000_000
DAY_LIMIT_MAX = 10**12

METRIC: Final = r"^[a-z0-9]+(?:_[a-z0-9]+)*$"
"""Of routes (gateway.route_settings)."""

TARGET_WALLET: Final = "target_wallet_code"
"""A property of events by which Lago chooses the wallet that pays (lago-api ``app/models/charge.rb``)."""

EventProperty = Annotated[str, Field(min_length=1, max_length=255)]
Money = Annotated[Decimal, Field(ge=0, max_digits=20, decimal_places=12)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class PlanPolicy(_Model):
    """Enforcement policy for the subscribers of a plan, in addition to their plan in Lago."""

    code: str = Field(min_length=1, max_length=255, description="The plan's code in Lago.")
    mode: Mode | None = Field(
        default=None,
        description="`prepaid`, `overage` or `postpaid`. By default an account is `prepaid` if Lago lists a wallet of "
        "the customer, even a terminated one, and has `lago.default_mode` otherwise.",
    )
    overdraft: Money | None = Field(
        default=None, description="Prepaid: money that an account may spend beyond its wallets."
    )
    spending_cap: Money | None = Field(default=None, description="Overage: highest cost of usage in a period.")
    credit_limit: Money | None = Field(
        default=None, description="Postpaid: highest open amount, unpaid invoices included."
    )
    requests_per_second: Annotated[Decimal, Field(ge=RATE_MIN, le=RATE_MAX)] | None = Field(
        default=None, description="Requests per second on average."
    )
    burst: int = Field(default=0, ge=0, le=BURST_MAX, description="Requests at once. 0: the requests of one second.")
    requests_per_day: int = Field(
        default=0, ge=0, le=DAY_LIMIT_MAX, description="Requests per day of UTC. 0: no limit."
    )


class BillableMetricSettings(_Model):
    """A metric of routes, and what Lago's usage events of it carry."""

    metric: str = Field(
        max_length=64, pattern=METRIC, description="The metric, as `routes` have it; also OpenMeter's meter."
    )
    code: str = Field(min_length=1, max_length=255, description="Code of the billable metric in Lago.")
    properties: dict[EventProperty, EventProperty] = Field(
        default={},
        max_length=10,
        description="Properties of the usage events, by name: what charges of the billable metric are filtered or "
        "grouped by. Without a property that a filter needs, Lago takes the price of the charge itself.",
    )

    @model_validator(mode="after")
    def _chooses_no_wallet(self) -> BillableMetricSettings:
        if TARGET_WALLET in self.properties:
            raise ValueError(f"properties must not have {TARGET_WALLET}: Lago would take the money from one wallet")
        return self


class WebhookSettings(_Model):
    """``POST /webhooks/lago`` on the admin port of the control plane."""

    hmac_key: SecretStr | None = Field(
        default=None, min_length=1, description="Key of Lago's `hmac` signatures (Lago: Developers, Webhooks)."
    )
    hmac_key_file: Path | None = Field(default=None, description="File with the HMAC key.")
    jwt: bool = Field(
        default=False,
        description="Accept `jwt` signatures too. The control plane fetches the public key from Lago with the API "
        "key. Prefer HMAC: a JWT has the whole body in a header.",
    )
    jwt_issuer: str | None = Field(
        default=None, max_length=2048, description="The `iss` of the JWTs: Lago's LAGO_API_URL. By default lago.url."
    )
    body_bytes_max: int = Field(default=1_048_576, ge=1_024, le=33_554_432, description="Largest body in bytes.")
    requests_per_second_max: int = Field(
        default=200,
        ge=1,
        le=100_000,
        description="Webhooks per second. The control plane answers more with 429, and Lago sends them again.",
    )
    remember_s: int = Field(
        default=86_400,
        ge=60,
        le=2_592_000,
        description="Seconds for which the control plane ignores a webhook that it has seen.",
    )


class ReconcileSettings(_Model):
    """How funds and prices are brought from Lago into the ledger."""

    interval_s: int = Field(
        default=300,
        ge=1,
        le=86_400,
        description="Seconds between two sweeps over all customers, plus or minus a tenth.",
    )
    full_interval_s: int = Field(
        default=21_600, ge=1, le=604_800,
        description="Seconds after which the reconciler reads an account in full even if the lists show no change.",
    )  # fmt: skip
    concurrency: int = Field(
        default=8, ge=1, le=128, description="Accounts that the reconciler reads from Lago at once."
    )
    lease_ttl_ms: int = Field(
        default=5_000, ge=500, le=60_000,
        description="Milliseconds after which another control plane replaces a leader that does not renew its lease.",
    )  # fmt: skip
    poll_ms: int = Field(
        default=50, ge=10, le=5_000, description="Milliseconds between two checks for reload requests."
    )
    absent_s: int = Field(
        default=30,
        ge=1,
        le=3_600,
        description="Seconds for which the control plane does not ask Lago again about an account that Lago does not "
        "know.",
    )
    voided_open_s: int = Field(
        default=604_800, ge=0, le=31_536_000,
        description="Seconds for which the period of a voided invoice counts as unpaid until there is a new invoice.",
    )  # fmt: skip
    closed_kept_s: int = Field(
        default=8_640_000, ge=86_400, le=315_360_000,
        description="Seconds for which the reconciler keeps a period whose invoice is final.",
    )  # fmt: skip
    funds_age_s_max: int | None = Field(
        default=None, ge=10, le=31_536_000,
        description="Seconds after which the control plane suspends accounts that it could not read from Lago, at "
        "least twice `full_interval_s`. By default never: the last funds stay in force.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _ages_are_possible(self) -> ReconcileSettings:
        # An account that does not change is read once in full_interval_s, however well Lago answers.
        if self.funds_age_s_max is not None and self.funds_age_s_max < 2 * self.full_interval_s:
            raise ValueError(
                f"funds_age_s_max must be at least twice full_interval_s ({2 * self.full_interval_s}): an account that"
                " does not change is read only so often"
            )
        return self


class SyncSettings(_Model):
    """How metered usage is brought from OpenMeter to Lago."""

    enabled: bool = Field(default=True, description="Whether the control plane pushes usage to Lago.")
    source: Literal["openmeter", "ledger"] = Field(
        default="openmeter",
        description="Whose counts are pushed. `openmeter`: what OpenMeter shows, never more than the ledger has "
        "charged. `ledger`: what the ledger has charged, hour by hour. With either, the sync pushes from the ledger "
        "what OpenMeter does not show five minutes after the end of a period.",
    )
    interval_s: int = Field(default=3_600, ge=1, le=86_400, description="Seconds between two pushes.")
    window_s: Literal[60, 300, 900, 3600] = Field(
        default=3_600, description="Length in seconds of a window of usage. Each window is one event in Lago."
    )
    settle_s: int = Field(
        default=10, ge=0, le=3_600,
        description="Seconds after which a window counts as complete in OpenMeter. The sync pushes later usage as a "
        "difference.",
    )  # fmt: skip
    rescan_s: int = Field(
        default=86_400, ge=3_600, le=2_678_400, description="Seconds back for which the sync compares windows again."
    )
    final_flush_s: int = Field(
        default=60, ge=0, le=2_678_400,
        description="Seconds before the end of a period from which the sync pushes its usage at every check. It "
        "pushes again right after the end: Lago makes the invoice ten minutes past the hour, and later "
        "usage is not on it. 2678400 pushes all usage at every check, so that Lago has it before upgrades "
        "and terminations.",
    )  # fmt: skip
    batch_events_max: int = Field(
        default=100, ge=1, le=100, description="Most events in one request to Lago, which accepts 100."
    )
    late_usage: Literal["report", "carry"] = Field(
        default="report",
        description="Handling of usage that missed its invoice. `report`: show it (metric and table). `carry`: bill "
        "it in the next period, at the price of that period.",
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> SyncSettings:
        if self.source == "ledger" and self.window_s != 3_600:
            raise ValueError("source ledger needs window_s 3600: the ledger counts by the hour")
        return self


class AuditSettings(_Model):
    """The comparison of the ledger with OpenMeter."""

    enabled: bool = Field(default=True, description="Whether the audit compares the ledger with OpenMeter.")
    interval_s: int = Field(default=900, ge=1, le=86_400, description="Seconds between two comparisons.")
    settle_s: int = Field(
        default=300, ge=1, le=7_200, description="Seconds after which an hour counts as complete in OpenMeter."
    )
    hours: int = Field(default=48, ge=1, le=168, description="Past hours that the audit compares until they agree.")


class LagoSettings(_Model):
    """Lago. Without ``url`` accounts come from files (`sidecar account load`)."""

    url: BaseUrl | None = Field(default=None, description="Base URL of Lago's API. Requests go to <url>/api/v1/….")
    api_key: Token | None = Field(default=None, description="API key of Lago.")
    api_key_file: Path | None = Field(
        default=None, description="File with the API key. The control plane reads it at the start and after each 401."
    )
    ca_file: Path | None = Field(
        default=None, description="PEM file with the authorities for url. Without it the system's authorities count."
    )
    timeout_ms: int = Field(default=10_000, ge=100, le=120_000, description="Milliseconds that one request may take.")
    requests_per_second: float = Field(
        default=40.0, gt=0, le=10_000,
        description="Requests per second to Lago in total. Lago's cloud allows 50 of most kinds.",
    )  # fmt: skip
    requests_in_flight_max: int = Field(default=8, ge=1, le=128, description="Most requests at a time.")
    attempts_max: int = Field(default=4, ge=1, le=20, description="Most attempts of a request that fails temporarily.")
    answer_bytes_max: int = Field(
        default=16_777_216, ge=65_536, le=268_435_456, description="Largest response of Lago in bytes."
    )
    default_mode: Mode | None = Field(
        default=None,
        description="Mode of accounts for which nothing else says it: no wallet in Lago, no `quota_mode` in the "
        "customer's metadata, no mode of the plan in `plan_policies`. While it is not set, the reconciler refuses such "
        "accounts (finding `policy`).",
    )
    plan_policies: tuple[PlanPolicy, ...] = Field(
        default=(),
        max_length=1_000,
        description="Enforcement policy for the subscribers of a plan. Metadata of the customer in Lago overrides it.",
    )
    billable_metrics: tuple[BillableMetricSettings, ...] = Field(
        default=(),
        max_length=1_000,
        description="Metrics of routes whose usage has properties in Lago, or another code there. A metric without an "
        "entry is the billable metric of the same code, without properties.",
    )
    webhooks: WebhookSettings = Field(default=WebhookSettings(), description="Lago's webhooks.")
    reconcile: ReconcileSettings = Field(
        default=ReconcileSettings(), description="How accounts get from Lago into the ledger."
    )
    sync: SyncSettings = Field(default=SyncSettings(), description="How usage gets from OpenMeter to Lago.")
    audit: AuditSettings = Field(default=AuditSettings(), description="The comparison of the ledger with OpenMeter.")

    @model_validator(mode="after")
    def _fields_agree(self) -> LagoSettings:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("only one of api_key and api_key_file can be given")
        if self.url is not None and self.api_key is None and self.api_key_file is None:
            raise ValueError("url needs api_key or api_key_file")
        codes = [policy.code for policy in self.plan_policies]
        if len(set(codes)) < len(codes):
            raise ValueError("plan_policies has two entries for one code")
        metrics = Counter(each.metric for each in self.billable_metrics)
        if twice := [metric for metric, number in metrics.items() if number > 1]:
            raise ValueError(f"billable_metrics has two entries for the metric {twice[0]}")
        if self.webhooks.hmac_key is not None and self.webhooks.hmac_key_file is not None:
            raise ValueError("only one of webhooks.hmac_key and webhooks.hmac_key_file can be given")
        return self
