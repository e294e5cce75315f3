"""Weak keys, each made here."""

from math import isqrt, prod

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from ca_server.core import keycheck
from ca_server.core.keycheck import check_key, has_roca_fingerprint, has_small_factor, is_fermat_factorable
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.profiles import load_profile


def without_small_factors(number: int) -> int:
    """The next odd number that trial division finds nothing of: enough of a prime for what is tested here."""
    number |= 1
    while has_small_factor(number):
        number += 2
    return number


def public_key(modulus: int, exponent: int = 65_537) -> rsa.RSAPublicKey:
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


@pytest.fixture(scope="module")
def profile(support):
    return support.profile_named("default")


@pytest.fixture(scope="module")
def good(support) -> int:
    return support.make_key(KeyAlgorithm.RSA2048).public_key().public_numbers().n


def refused(key, profile, rule: str, **options) -> None:
    with pytest.raises(CaError) as caught:
        check_key(key, profile, **options)
    assert (caught.value.kind, caught.value.rule) == (ErrorKind.BAD_PUBLIC_KEY, rule)


@pytest.mark.parametrize("algorithm", [a for a in KeyAlgorithm if a is not KeyAlgorithm.P521])
def test_good_keys_pass(support, profile, algorithm):
    check_key(support.make_key(algorithm).public_key(), profile)


def test_keys_that_the_profile_does_not_allow(support, profile, good):
    refused(support.make_key(KeyAlgorithm.P521).public_key(), profile, "keys.allowed")
    refused(rsa.generate_private_key(65537, 1024).public_key(), profile, "keys.allowed")
    refused(public_key(good | 1 << 2048), profile, "keys.allowed")
    refused(ec.generate_private_key(ec.SECP256K1()).public_key(), profile, "keys.allowed")


def test_profile_decides_which(support):
    text = (support.PROFILES / "default.toml").read_text()
    only = text.replace('allowed = ["ec-p256", "ec-p384", "rsa-2048",', 'allowed = ["ec-p384",')
    narrow = load_profile("narrow", only, where="f")
    refused(support.make_key(KeyAlgorithm.P256).public_key(), narrow, "keys.allowed")
    check_key(support.make_key(KeyAlgorithm.P384).public_key(), narrow)


def test_blocklist_wins(support, profile):
    refused(support.make_key(KeyAlgorithm.P256).public_key(), profile, "keys.blocklist", blocked=True)


@pytest.mark.parametrize("exponent", [3, 17, 65_535, (1 << 256) + 1], ids=["3", "17", "below", "above"])
def test_exponents(profile, good, exponent):
    refused(public_key(good, exponent), profile, "keys.exponent")


def test_even_exponent_does_not_even_load(good):
    with pytest.raises(ValueError, match="odd"):
        public_key(good, 65_538)


@pytest.mark.parametrize("prime", [3, 5, 167, 743, 751])
def test_small_factors(profile, prime):
    modulus = prime * without_small_factors((1 << 2047) // prime + (1 << 1900))
    assert modulus.bit_length() == 2048
    refused(public_key(modulus), profile, "keys.small_factor")


def test_factor_at_the_limit_is_none_of_ours():
    assert not has_small_factor(757 * 761)


def roca_factor(k: int, a: int) -> int:
    """A factor as the flawed library made it, k * M + (65537^a mod M), for 2048-bit keys."""
    primorial = prod(keycheck._primes(702))
    while has_small_factor(candidate := k * primorial + pow(65_537, a, primorial)):
        k += 1
    return candidate


def test_roca(profile):
    assert len(keycheck._primes(702)) == 126
    k = (7 << 1021) // prod(keycheck._primes(702))
    modulus = roca_factor(k, 1234) * roca_factor(k - (1 << 40), 987_654)
    assert modulus.bit_length() == 2048
    assert has_roca_fingerprint(modulus)
    refused(public_key(modulus), profile, "keys.roca")


def test_one_prime_outside_the_subgroup_clears_the_fingerprint(good):
    assert not has_roca_fingerprint(good)
    k = (7 << 1021) // prod(keycheck._primes(702))
    modulus = roca_factor(k, 1234) * roca_factor(k - (1 << 40), 987_654)
    others = prod(prime for prime in keycheck._primes(168)[1:] if prime != 11)
    moved = next(n for n in range(modulus, modulus + 22 * others, 2 * others) if n % 11 not in {1, 10})
    assert not has_roca_fingerprint(moved)


def test_fermat(support, profile):
    first = support.make_key(KeyAlgorithm.RSA2048).private_numbers().p
    modulus = first * without_small_factors(first + (1 << 400))
    assert modulus.bit_length() == 2048
    refused(public_key(modulus), profile, "keys.fermat")


def test_fermat_needs_rounds_for_factors_farther_apart():
    first = without_small_factors(1 << 511)
    second = first + isqrt(first) * 24 | 1
    assert not is_fermat_factorable(first * second, rounds=1)
    assert is_fermat_factorable(first * second, rounds=100)


def test_square_and_honest_modulus(good):
    assert is_fermat_factorable((1 << 1023 | 1) ** 2)
    assert not is_fermat_factorable(good)


def ed25519_key(encoded: int) -> ed25519.Ed25519PublicKey:
    return ed25519.Ed25519PublicKey.from_public_bytes(encoded.to_bytes(32, "little"))


P = 2**255 - 19
ORDER_8 = keycheck._ED25519_ORDER_8


@pytest.mark.parametrize("y", [0, 1, P - 1, P, P + 1, ORDER_8, P - ORDER_8, 2], ids=str)
@pytest.mark.parametrize("sign", [0, 1])
def test_ed25519_points_of_small_order_or_none(profile, y, sign):
    refused(ed25519_key(y | sign << 255), profile, "keys.point")


def test_order_8_is_of_order_8():
    d = keycheck._ED25519_D
    square = (ORDER_8**2 - 1) * pow(d * ORDER_8**2 + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    point = (x, ORDER_8)
    seen = []
    for _ in range(3):
        (x, y) = point
        t = d * x * x * y * y % P
        point = (2 * x * y * pow(1 + t, -1, P) % P, (y * y + x * x) * pow(1 - t, -1, P) % P)
        seen.append(point == (0, 1))
    assert seen == [False, False, True]
