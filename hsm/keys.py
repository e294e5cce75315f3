"""Keys in the token by label: the KeyStore and SigningKey ports of the core over PKCS#11."""

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass

from ca_server.core.ports import SigningKey
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from hsm import algorithms
from hsm.options import TokenOptions
from hsm.pool import Bench, Observe, Pool
from hsm.token import Token

_FORMAT = b"\x01"
"""First octet of a ciphertext: AES-256-GCM in the token, 12 octets of IV, ciphertext, tag of 16 octets."""
_IV = 12
_TAG_BITS = 128
_GENERATION_LIMIT = 120.0
"""Seconds for making a key: a large RSA key takes a token long, and it is made once."""


def _unobserved(_operation: str, _outcome: str, _seconds: float) -> None:
    return


async def open_keystore(options: TokenOptions, observe: Observe | None = None) -> "TokenKeyStore":
    """Load the module, log in to the token and start the workers.

    ConfigurationError says what is wrong with module, label or PIN; CaError UNAVAILABLE where the token is away.
    """
    token = await asyncio.to_thread(Token, options)
    await asyncio.to_thread(token.open)
    return TokenKeyStore(token, observe or _unobserved)


class TokenKey(SigningKey):
    """A private key in the token; stays usable over recoveries, since it is found by label again."""

    def __init__(self, store: "TokenKeyStore", label: str, algorithm: KeyAlgorithm, spki_der: bytes) -> None:
        self.label = label
        self.algorithm = algorithm
        self.spki_der = spki_der
        self._store = store

    async def sign(self, data: bytes) -> bytes:
        return await self._store.sign(self, data)


class TokenKeyStore:
    """KeyStore over one token.

    `_uses` is shared by the workers under `_counting`; the event loop owns `_known` and `_secrets`, the labels of
    private and secret keys that this process has found, and `_missed`, what the last probe missed after a recovery.
    `_deleted_at` is set by the worker that deletes: handles that were cached before are not used again.
    """

    def __init__(self, token: Token, observe: Observe) -> None:
        self._token = token
        self._pool = Pool(token, observe)
        self._uses: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._known: set[str] = set()
        self._secrets: set[str] = set()
        self._missed = ""
        self._deleted_at = 0.0

    async def generate(self, label: str, algorithm: KeyAlgorithm) -> SigningKey:
        def work(bench: Bench) -> tuple[KeyAlgorithm, bytes]:
            if _private_keys(bench, label):
                raise CaError(ErrorKind.CONFLICT, f"the token has a key {label!r} already")
            public, private = algorithms.generate_pair(bench.session, label, algorithm)
            try:
                made, spki_der = algorithms.public_key(public)
                identifier = algorithms.key_identifier(spki_der)
                public[Attribute.ID] = identifier
                private[Attribute.ID] = identifier
                self._count(label)
                _check_pair(private, made, spki_der)
            except BaseException:
                private.destroy()
                public.destroy()
                raise
            return made, spki_der

        made, spki_der = await self._pool.run(
            "generate", work, spread=algorithms.is_slow(algorithm), limit=_GENERATION_LIMIT
        )
        self._known.add(label)
        return TokenKey(self, label, made, spki_der)

    async def find(self, label: str) -> SigningKey:
        def work(bench: Bench) -> tuple[KeyAlgorithm, bytes]:
            private = self._only_private_key(bench, label)
            return algorithms.public_key(_public_part(bench, label, private))

        algorithm, spki_der = await self._pool.run("find", work)
        self._known.add(label)
        return TokenKey(self, label, algorithm, spki_der)

    async def labels(self) -> tuple[str, ...]:
        def work(bench: Bench) -> tuple[str, ...]:
            query = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.TOKEN: True}
            found = tuple(sorted(str(key[Attribute.LABEL]) for key in bench.session.get_objects(query)))
            if not found:
                self._check_not_lost(bench)
            return found

        return await self._pool.run("labels", work)

    async def delete(self, label: str) -> bool:
        def work(bench: Bench) -> bool:
            private = _private_keys(bench, label)
            if not private:
                self._check_not_lost(bench)
            for key in (*private, *_objects(bench, ObjectClass.PUBLIC_KEY, label)):
                key.destroy()
            self._deleted_at = time.monotonic()
            return bool(private)

        self._known.discard(label)
        return await self._pool.run("delete", work)

    async def sign(self, key: TokenKey, data: bytes) -> bytes:
        """Sign with a key of this store (SigningKey.sign)."""

        def work(bench: Bench) -> bytes:
            handle = self._signing_handle(bench, key.label)
            self._count(key.label)
            return algorithms.sign(handle, key.algorithm, data)

        try:
            return await self._pool.run("sign", work, spread=algorithms.is_slow(key.algorithm))
        except CaError as error:
            raise _out_of_reach(error) from None

    def _signing_handle(self, bench: Bench, label: str) -> Any:
        """A session copy of the key, which signs up to twice as fast as the token object on SoftHSM2.

        A copy would go on signing after the token has gone, so the token object is looked at first where that was
        not done within the probe interval.
        """
        now = time.monotonic()
        known = bench.handles.get(label)
        if known is not None and known[2] > self._deleted_at:
            original, working, looked_at = known
            if now - looked_at > self._token.options.probe_interval:
                _look_at(original)
                bench.handles[label] = (original, working, now)
            return working
        original = self._only_private_key(bench, label)
        try:
            working = original.copy(
                {Attribute.TOKEN: False, Attribute.LABEL: f"{label} (session)", Attribute.PRIVATE: True}
            )
        except (pkcs11.FunctionNotSupported, pkcs11.TemplateInconsistent, pkcs11.AttributeReadOnly):
            working = original
        bench.handles[label] = (original, working, now)
        return working

    def _count(self, label: str) -> None:
        with self._counting:
            self._uses[label] += 1

    def _only_private_key(self, bench: Bench, label: str) -> Any:
        found = _private_keys(bench, label)
        if not found:
            self._check_not_lost(bench)
            raise CaError(ErrorKind.NOT_FOUND, f"the token has no private key {label!r}")
        if len(found) > 1:
            raise CaError(
                ErrorKind.CONFLICT, f"the token has {len(found)} private keys {label!r}; exactly one must match"
            )
        return found[0]

    def _secret_key(self, bench: Bench, label: str) -> Any:
        found = _objects(bench, ObjectClass.SECRET_KEY, label)
        if not found:
            self._check_not_lost(bench)
        if len(found) != 1:
            raise CaError(ErrorKind.NOT_FOUND, f"the token has not exactly one secret key {label!r}")
        return found[0]

    def _check_not_lost(self, bench: Bench) -> None:
        """Nothing was found: raise where that is because token or log-in are gone.

        SoftHSM2 then reports no error: it shows a token without private objects. A token that had keys and shows
        none was lost; to answer "not found" would fail for good what should be tried again.
        """
        if not self._known and not self._secrets:
            return
        if not list(bench.session.get_objects({Attribute.TOKEN: True, Attribute.PRIVATE: True})):
            raise pkcs11.TokenNotPresent

    async def ensure_secret_key(self, label: str) -> bool:
        def work(bench: Bench) -> bool:
            found = _objects(bench, ObjectClass.SECRET_KEY, label)
            if len(found) > 1:
                raise CaError(ErrorKind.CONFLICT, f"the token has more than one secret key {label!r}")
            if not found:
                bench.session.generate_key(
                    KeyType.AES,
                    256,
                    store=True,
                    label=label,
                    template={
                        Attribute.TOKEN: True,
                        Attribute.PRIVATE: True,
                        Attribute.SENSITIVE: True,
                        Attribute.EXTRACTABLE: False,
                        Attribute.ENCRYPT: True,
                        Attribute.DECRYPT: True,
                        Attribute.WRAP: False,
                        Attribute.UNWRAP: False,
                        Attribute.SIGN: False,
                        Attribute.VERIFY: False,
                        Attribute.DERIVE: False,
                    },
                )

            return not found

        made = await self._pool.run("generate", work)
        self._secrets.add(label)
        return made

    async def encrypt(self, label: str, plaintext: bytes, context: bytes) -> bytes:
        iv = secrets.token_bytes(_IV)

        def work(bench: Bench) -> bytes:
            parameters = GCMParams(iv, context, _TAG_BITS)
            key = self._secret_key(bench, label)
            return bytes(key.encrypt(plaintext, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))

        return _FORMAT + iv + await self._with_secret(label, "encrypt", work)

    async def decrypt(self, label: str, ciphertext: bytes, context: bytes) -> bytes:
        if len(ciphertext) < 1 + _IV + _TAG_BITS // 8 or ciphertext[:1] != _FORMAT:
            raise CaError(ErrorKind.MALFORMED, "this is no ciphertext of this server")
        iv, body = ciphertext[1 : 1 + _IV], ciphertext[1 + _IV :]

        def work(bench: Bench) -> bytes:
            key = self._secret_key(bench, label)
            _look_at(key)
            try:
                parameters = GCMParams(iv, context, _TAG_BITS)
                return bytes(key.decrypt(body, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))
            except (pkcs11.EncryptedDataInvalid, pkcs11.EncryptedDataLenRange, pkcs11.GeneralError):
                # SoftHSM2 answers a wrong tag with CKR_GENERAL_ERROR or CKR_ENCRYPTED_DATA_INVALID.
                raise CaError(ErrorKind.MALFORMED, "ciphertext or context were changed") from None

        return await self._with_secret(label, "decrypt", work)

    async def _with_secret(self, label: str, name: str, work: Callable[[Bench], bytes]) -> bytes:
        try:
            return await self._pool.run(name, work)
        except CaError as error:
            raise (_out_of_reach(error) if label in self._secrets else error) from None

    async def random(self, length: int) -> bytes:
        def work(bench: Bench) -> bytes:
            return bytes(bench.session.generate_random(length * 8))

        return await self._pool.run("random", work)

    async def probe(self) -> None:
        def work(bench: Bench) -> None:
            for label in sorted(self._known):
                self._only_private_key(bench, label)

        try:
            try:
                await self._pool.run("probe", work)
            except CaError as error:
                # A key that is missed may be a token that was changed under us: only opening it anew tells, once.
                if error.kind is ErrorKind.UNAVAILABLE or error.detail == self._missed:
                    raise
                await asyncio.to_thread(self._token.recover, self._token.generation)
                await self._pool.run("probe", work)
        except CaError as error:
            self._missed = "" if error.kind is ErrorKind.UNAVAILABLE else error.detail
            raise _out_of_reach(error) from None
        self._missed = ""

    def uses(self) -> dict[str, int]:
        with self._counting:
            return dict(self._uses)

    async def close(self) -> None:
        await self._pool.close()
        await asyncio.to_thread(self._token.close)


def _objects(bench: Bench, kind: ObjectClass, label: str) -> list[Any]:
    query = {Attribute.CLASS: kind, Attribute.LABEL: label, Attribute.TOKEN: True}
    return list(bench.session.get_objects(query))


def _private_keys(bench: Bench, label: str) -> list[Any]:
    return _objects(bench, ObjectClass.PRIVATE_KEY, label)


def _public_part(bench: Bench, label: str, private: Any) -> Any:
    """The public key object beside a private key: by label, else by CKA_ID; an RSA private key has it all."""
    found = _objects(bench, ObjectClass.PUBLIC_KEY, label)
    if not found:
        query = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: private[Attribute.ID], Attribute.TOKEN: True}
        found = list(bench.session.get_objects(query))
    if len(found) == 1:
        return found[0]
    if not found and private[Attribute.KEY_TYPE] == KeyType.RSA:
        return private
    raise CaError(ErrorKind.CONFLICT, f"the token has {len(found)} public keys for {label!r}; exactly one must match")


def _out_of_reach(error: CaError) -> CaError:
    """A key that this process had found and that is missing now, or is there twice: to be tried again."""
    if error.kind in {ErrorKind.NOT_FOUND, ErrorKind.CONFLICT}:
        return CaError(ErrorKind.UNAVAILABLE, error.detail, retry_after=5)
    return error


def _look_at(key: Any) -> None:
    """Read an attribute: raises where the token or the object is gone."""
    key[Attribute.LABEL]


def _check_pair(private: Any, algorithm: KeyAlgorithm, spki_der: bytes) -> None:
    """A new key must sign, and its public key verify. INTERNAL where it does not."""
    data = b"ca-server pairwise consistency"
    signature = algorithms.sign(private, algorithm, data)
    public = load_der_public_key(spki_der)
    try:
        if isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, data)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[public.curve.key_size]
            public.verify(signature, data, ec.ECDSA(digest))
    except InvalidSignature:
        raise CaError(ErrorKind.INTERNAL, "the token's new key pair does not verify its own signature") from None
