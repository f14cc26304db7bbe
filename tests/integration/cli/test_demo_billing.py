"""The demo's Lago, driven as an operator would, through Lago's own client: what it decides takes effect at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator

import pytest
from lago_python_client.client import Client
from lago_python_client.models import (
    Customer,
    Metadata,
    MetadataList,
    Subscription,
    WalletTransaction,
)

from tests.integration.cli.test_demo import ACCOUNTS, counted, get, key_of
from tests.support.processes import Running, running

SOON_S = 2.0
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with running("demo", "--proxy-port", "0", "--admin-port", "0", "--json") as started:
        yield started


@pytest.fixture(scope="module")
def lago(demo: Running) -> Client:
    return Client(api_key=demo.ready["lago_api_key"], api_url=f"{demo.ready['lago']}/")


def status_of(demo: Running, account: str) -> int:
    return get(demo.ready["proxy"] + ACCOUNTS, X_API_Key=key_of(demo, account))[0]


def seconds_until(holds: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < TIMEOUT_S
        time.sleep(0.05)
    return time.monotonic() - began


def test_a_top_up_in_lago_opens_a_blocked_account_within_two_seconds(demo: Running, lago: Client) -> None:
    while status_of(demo, "tpp-prepaid") == 200:
        pass
    assert status_of(demo, "tpp-prepaid") == 402
    (wallet,) = lago.wallets.find_all({"external_customer_id": "tpp-prepaid"})["wallets"]

    lago.wallet_transactions.create(WalletTransaction(wallet_id=wallet.lago_id, granted_credits="0.30"))

    assert seconds_until(lambda: status_of(demo, "tpp-prepaid") == 200) < SOON_S
    # The call that passed and two more: three times ten pence, and not a penny more.
    assert [status_of(demo, "tpp-prepaid") for _ in range(4)] == [200, 200, 402, 402]


def test_a_paid_top_up_counts_once_it_is_paid(demo: Running, lago: Client) -> None:
    assert status_of(demo, "tpp-prepaid") == 402
    (wallet,) = lago.wallets.find_all({"external_customer_id": "tpp-prepaid"})["wallets"]

    lago.wallet_transactions.create(WalletTransaction(wallet_id=wallet.lago_id, paid_credits="0.10"))

    assert seconds_until(lambda: status_of(demo, "tpp-prepaid") == 200) < SOON_S
    assert status_of(demo, "tpp-prepaid") == 402


def test_suspending_a_customer_takes_effect_as_fast_and_so_does_lifting_it(demo: Running, lago: Client) -> None:
    assert status_of(demo, "tpp-postpaid") == 200
    customer = lago.customers.find("tpp-postpaid")
    pairs = [Metadata(key=pair.key, value=pair.value) for pair in customer.metadata.__root__]

    def tell(status: str) -> None:
        kept = [pair for pair in pairs if pair.key != "quota_status"]
        kept.append(Metadata(key="quota_status", value=status))
        lago.customers.create(Customer(external_id="tpp-postpaid", metadata=MetadataList(__root__=kept)))

    tell("suspended")
    assert seconds_until(lambda: status_of(demo, "tpp-postpaid") == 403) < SOON_S
    tell("active")
    assert seconds_until(lambda: status_of(demo, "tpp-postpaid") == 200) < SOON_S


def test_an_upgrade_takes_effect_as_fast(demo: Running, lago: Client) -> None:
    url = demo.ready["proxy"] + ACCOUNTS
    assert get(url, X_API_Key=key_of(demo, "tpp-postpaid"))[1]["X-Credits-Charged"] == "0.05"

    lago.subscriptions.create(
        Subscription(external_customer_id="tpp-postpaid", external_id="tpp-postpaid-sub", plan_code="api_pro")
    )

    # The other plan includes twenty calls.
    free = seconds_until(lambda: get(url, X_API_Key=key_of(demo, "tpp-postpaid"))[1]["X-Credits-Charged"] == "0.00")
    assert free < SOON_S


def test_a_termination_takes_effect_as_fast(demo: Running, lago: Client) -> None:
    assert status_of(demo, "tpp-overage") == 200

    lago.subscriptions.destroy("tpp-overage-sub")

    assert seconds_until(lambda: status_of(demo, "tpp-overage") == 403) < SOON_S


def test_a_customer_who_is_new_in_lago_is_served_without_anything_else(demo: Running, lago: Client) -> None:
    digest = hashlib.sha256(b"a-new-key").hexdigest()
    pairs = [Metadata(key="quota_api_key", value=digest), Metadata(key="quota_mode", value="postpaid")]
    lago.customers.create(Customer(external_id="tpp-new", currency="GBP", metadata=MetadataList(__root__=pairs)))
    lago.subscriptions.create(
        Subscription(external_customer_id="tpp-new", external_id="tpp-new-sub", plan_code="api_postpaid")
    )

    assert seconds_until(lambda: get(demo.ready["proxy"] + ACCOUNTS, X_API_Key="a-new-key")[0] == 200) < TIMEOUT_S


def test_what_was_debited_reaches_lago_s_current_usage(demo: Running, lago: Client) -> None:
    account = get(f"{demo.ready['admin']}/v1/accounts/tpp-prepaid")[2]
    settled = sum(metric["settled"] for metric in account["metrics"] if metric["metric"] == "api_calls")
    assert counted(demo, "tpp-prepaid", settled) == settled

    def pushed() -> bool:
        usage = lago.customers.current_usage("tpp-prepaid", "tpp-prepaid-sub")
        return [float(each.units) for each in usage.charges_usage if each.billable_metric.code == "api_calls"] == [
            settled
        ]

    seconds_until(pushed)
