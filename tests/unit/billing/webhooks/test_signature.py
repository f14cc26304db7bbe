"""What is Lago's and what is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path

import jwt
import pytest
from pydantic import SecretStr

from sidecar.billing.settings import WebhookSettings
from sidecar.billing.webhooks import public_key as public_key_module
from sidecar.billing.webhooks.public_key import PublicKey
from sidecar.billing.webhooks.signature import (
    KeyUnavailable,
    SignatureRefused,
    Verifier,
    WebhookSetupError,
    verifier_of,
    verify_hmac,
)
from tests.unit.billing.webhooks.kit import HMAC_KEY, ISSUER, HandClock, SigningKey, hmac_signature

BODY = '{"webhook_type":"wallet.updated","object_type":"wallet","wallet":{"name":"Zoë \\u00e9"}}'.encode()


@pytest.fixture(scope="module")
def signing() -> SigningKey:
    return SigningKey()


class Lago:
    """Answers its public key, as long as it is up."""

    def __init__(self, key: SigningKey) -> None:
        self.key = key
        self.up = True
        self.asked = 0

    async def public_key(self) -> bytes:
        self.asked += 1
        if not self.up:
            raise ConnectionError("no route")
        return self.key.pem


@pytest.fixture
def lago(signing: SigningKey) -> Lago:
    return Lago(signing)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def verifier(lago: Lago, clock: HandClock) -> Verifier:
    return Verifier(HMAC_KEY.encode(), PublicKey(lago.public_key, clock), ISSUER)


async def refuses(verifier: Verifier, algorithm: str, signature: str | bytes, body: bytes = BODY) -> bool:
    try:
        await verifier.verify(algorithm, signature.encode() if isinstance(signature, str) else signature, body)
    except SignatureRefused:
        return True
    return False


async def test_an_hmac_over_the_raw_body_is_taken(verifier: Verifier) -> None:
    assert not await refuses(verifier, "hmac", hmac_signature(BODY))


def test_the_hmac_is_the_known_one() -> None:
    # RFC 4231, test case 2, in Base64.
    body, digest = b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    verify_hmac(base64.b64encode(bytes.fromhex(digest)), body, b"Jefe")


@pytest.mark.parametrize(
    "signature",
    [
        "",
        hmac_signature(BODY)[:-1],
        hmac_signature(BODY) + "=",
        hmac_signature(BODY) + "\n",
        hmac_signature(BODY).rstrip("="),
        hmac_signature(BODY).lower(),
        hmac_signature(BODY, "another key"),
        hmac_signature(BODY + b" "),
        hmac.new(HMAC_KEY.encode(), BODY, hashlib.sha256).hexdigest(),
        "\udcff",
        "A" * 10_000,
    ],
)
async def test_any_other_hmac_is_refused(verifier: Verifier, signature: str) -> None:
    assert await refuses(verifier, "hmac", signature.encode(errors="surrogateescape"))


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"\n", BODY.replace(b"Zo", b"zo"), b""])
async def test_another_body_than_the_signed_one_is_refused(
    verifier: Verifier, signing: SigningKey, body: bytes
) -> None:
    assert await refuses(verifier, "hmac", hmac_signature(BODY), body)
    assert await refuses(verifier, "jwt", signing.sign(BODY), body)


async def test_a_jwt_with_the_raw_body_is_taken(verifier: Verifier, signing: SigningKey) -> None:
    assert not await refuses(verifier, "jwt", signing.sign(BODY))


@pytest.mark.parametrize("issuer", [ISSUER + "/", ISSUER])
async def test_a_slash_at_the_end_of_the_issuer_makes_no_difference(
    verifier: Verifier, signing: SigningKey, issuer: str
) -> None:
    assert not await refuses(verifier, "jwt", signing.sign(BODY, iss=issuer))


@pytest.mark.parametrize("changes", [{"iss": "https://evil.example"}, {"iss": None}, {"iss": ""}, {"data": None}])
async def test_a_jwt_of_another_issuer_or_without_a_body_is_refused(
    verifier: Verifier, signing: SigningKey, changes: dict[str, str | None]
) -> None:
    assert await refuses(verifier, "jwt", signing.sign(BODY, **changes))


async def test_a_jwt_whose_data_is_the_body_s_json_and_not_its_text_is_refused(
    verifier: Verifier, signing: SigningKey
) -> None:
    assert await refuses(verifier, "jwt", signing.sign(BODY, data=json.loads(BODY)))
    assert await refuses(verifier, "jwt", signing.sign(BODY, data=json.dumps(json.loads(BODY))))


async def test_a_jwt_that_has_expired_is_refused(verifier: Verifier, signing: SigningKey) -> None:
    assert await refuses(verifier, "jwt", signing.sign(BODY, exp=1_000_000_000))


async def test_a_public_key_used_as_a_secret_signs_nothing(verifier: Verifier, signing: SigningKey) -> None:
    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    claims = part(json.dumps({"data": BODY.decode(), "iss": ISSUER}).encode())
    for algorithm, digest in (("HS256", "sha256"), ("HS512", "sha512")):
        head = part(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
        mac = hmac.new(signing.pem, head + b"." + claims, digest).digest()
        assert await refuses(verifier, "jwt", head + b"." + claims + b"." + part(mac))


async def test_a_jwt_without_signature_is_refused(verifier: Verifier, signing: SigningKey) -> None:
    unsigned = jwt.encode({"data": BODY.decode(), "iss": ISSUER}, "", algorithm="none")
    head, claims, _ = signing.sign(BODY).split(".")
    for token in (unsigned, f"{head}.{claims}.", f"{unsigned.split('.')[0]}.{claims}.AAAA", f"{head}.{claims}"):
        assert await refuses(verifier, "jwt", token)


async def test_another_rsa_algorithm_of_the_same_key_is_refused(verifier: Verifier, signing: SigningKey) -> None:
    for algorithm in ("RS384", "RS512", "PS256"):
        token = jwt.encode({"data": BODY.decode(), "iss": ISSUER}, signing.private, algorithm=algorithm)
        assert await refuses(verifier, "jwt", token)


async def test_critical_extensions_are_refused(verifier: Verifier, signing: SigningKey) -> None:
    claims = {"data": BODY.decode(), "iss": ISSUER}
    token = jwt.encode(claims, signing.private, algorithm="RS256", headers={"crit": ["exp"], "exp": 9_999_999_999})
    assert await refuses(verifier, "jwt", token)


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "\xff.\xff.\xff", "e30.e30.e30", "." * 5_000, "[" * 99_999])
async def test_what_is_no_jwt_is_refused(verifier: Verifier, token: str) -> None:
    assert await refuses(verifier, "jwt", token.encode("latin-1"))


@pytest.mark.parametrize("algorithm", ["", "HMAC", "rs256", "none", "jwt ", "hmac,jwt"])
async def test_only_lago_s_two_names_of_algorithms_are_known(
    verifier: Verifier, signing: SigningKey, algorithm: str
) -> None:
    assert await refuses(verifier, algorithm, hmac_signature(BODY))
    assert await refuses(verifier, algorithm, signing.sign(BODY))


async def test_an_algorithm_that_is_not_configured_is_refused(lago: Lago, clock: HandClock) -> None:
    only_hmac = Verifier(HMAC_KEY.encode())
    only_jwt = Verifier(None, PublicKey(lago.public_key, clock), ISSUER)

    assert await refuses(only_hmac, "jwt", lago.key.sign(BODY))
    assert await refuses(only_jwt, "hmac", hmac_signature(BODY))
    assert await refuses(only_jwt, "hmac", hmac_signature(BODY, ""))
    assert lago.asked == 0


async def test_the_key_is_fetched_once_for_many_webhooks(verifier: Verifier, lago: Lago) -> None:
    for _ in range(3):
        assert not await refuses(verifier, "jwt", lago.key.sign(BODY))
    assert lago.asked == 1


async def test_a_new_key_is_fetched_when_a_signature_is_unknown(
    verifier: Verifier, lago: Lago, clock: HandClock
) -> None:
    old = lago.key
    await verifier.verify("jwt", old.sign(BODY).encode(), BODY)
    lago.key = SigningKey()
    clock.at_s += public_key_module.COOL_DOWN_S

    assert not await refuses(verifier, "jwt", lago.key.sign(BODY))
    assert await refuses(verifier, "jwt", old.sign(BODY))
    assert lago.asked == 2


async def test_invented_signatures_make_lago_be_asked_once_a_minute_at_most(
    verifier: Verifier, lago: Lago, clock: HandClock
) -> None:
    stranger = SigningKey()
    for _ in range(600):
        assert await refuses(verifier, "jwt", stranger.sign(BODY))
        clock.at_s += 1
    assert lago.asked == 10


async def test_what_is_wrong_besides_the_signature_makes_lago_not_be_asked(verifier: Verifier, lago: Lago) -> None:
    assert await refuses(verifier, "jwt", "a.b.c")
    asked = lago.asked
    assert await refuses(verifier, "jwt", lago.key.sign(BODY, iss="https://evil.example"))
    assert lago.asked == asked


async def test_a_lago_out_of_reach_does_not_fail_a_known_key(verifier: Verifier, lago: Lago, clock: HandClock) -> None:
    await verifier.verify("jwt", lago.key.sign(BODY).encode(), BODY)
    lago.up = False
    clock.at_s += 10 * public_key_module.AGE_S_MAX

    assert not await refuses(verifier, "jwt", lago.key.sign(BODY))
    assert await refuses(verifier, "jwt", SigningKey().sign(BODY))
    assert not await refuses(verifier, "jwt", lago.key.sign(BODY))


async def test_without_a_key_nobody_can_tell_and_lago_is_asked_again_soon(
    verifier: Verifier, lago: Lago, clock: HandClock
) -> None:
    lago.up = False
    for _ in range(5):
        with pytest.raises(KeyUnavailable):
            await verifier.verify("jwt", lago.key.sign(BODY).encode(), BODY)
    assert lago.asked == 1

    lago.up = True
    clock.at_s += public_key_module.COOL_DOWN_FAILED_S
    assert not await refuses(verifier, "jwt", lago.key.sign(BODY))


def test_a_key_file_s_newline_is_not_part_of_the_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(HMAC_KEY + "\n")
    read = verifier_of(WebhookSettings(hmac_key_file=path), None, unused, HandClock())
    assert read.is_configured
    assert read._hmac_key == HMAC_KEY.encode()


async def unused() -> bytes:
    raise AssertionError("nobody asks")


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"", "empty"), (b"\n", "empty")])
def test_a_key_file_that_cannot_be_used_is_named_with_its_setting(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WebhookSetupError, match=rf"^lago\.webhooks\.hmac_key_file: {path}.*{words}"):
        verifier_of(WebhookSettings(hmac_key_file=path), None, unused, HandClock())


def test_a_key_file_too_large_for_a_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 65_537)
    with pytest.raises(WebhookSetupError, match="larger than 65536 bytes"):
        verifier_of(WebhookSettings(hmac_key_file=path), None, unused, HandClock())


def test_jwt_needs_an_issuer_from_either_setting() -> None:
    with pytest.raises(WebhookSetupError, match=r"lago\.webhooks\.jwt_issuer"):
        verifier_of(WebhookSettings(jwt=True), None, unused, HandClock())
    assert verifier_of(WebhookSettings(jwt=True), ISSUER, unused, HandClock()).is_configured
    assert verifier_of(WebhookSettings(jwt=True, jwt_issuer=ISSUER), None, unused, HandClock()).is_configured


async def test_the_issuer_of_the_settings_comes_before_lago_s_url(lago: Lago) -> None:
    settings = WebhookSettings(jwt=True, jwt_issuer="https://other.example")
    verifier = verifier_of(settings, ISSUER, lago.public_key, HandClock())
    assert await refuses(verifier, "jwt", lago.key.sign(BODY))
    assert not await refuses(verifier, "jwt", lago.key.sign(BODY, iss="https://other.example"))


def test_nothing_is_configured_by_default() -> None:
    assert not verifier_of(WebhookSettings(), ISSUER, unused, HandClock()).is_configured


def test_the_key_shows_in_no_repr(lago: Lago, clock: HandClock) -> None:
    settings = WebhookSettings(hmac_key=SecretStr(HMAC_KEY))
    assert HMAC_KEY not in repr((settings, verifier_of(settings, None, unused, clock)))
