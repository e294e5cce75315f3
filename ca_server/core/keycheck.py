"""Public keys that must not be certified: weak by size, by construction, or known to others."""

from functools import cache
from math import gcd, isqrt, prod
from typing import Final, NoReturn

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from ca_server.core.der import PublicKey, key_algorithm
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.profiles import Profile

FERMAT_ROUNDS: Final = 100
"""Finds factors whose difference is below about 2^(bits/4 + 8): primes drawn independently never are so close."""
SMALL_PRIME_LIMIT: Final = 752
"""Moduli have no factor below this (CA/Browser Forum Baseline Requirements 6.1.6)."""
MIN_EXPONENT: Final = 65_537
MAX_EXPONENT_BITS: Final = 256

BLOCKED_KEY: Final = "keys.blocklist"
"""The rule that a key on the blocklist is refused by, whatever its profile."""
_SQUARES_MOD_64: Final = frozenset(n * n % 64 for n in range(64))
_ED25519_P: Final = 2**255 - 19
_ED25519_D: Final = (-121_665 * pow(121_666, -1, _ED25519_P)) % _ED25519_P
_ED25519_ORDER_8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
"""y of one pair of points of order 8; p - y is the other."""


def check_key(public_key: PublicKey, profile: Profile, *, blocked: bool = False) -> None:
    """Refuse with BAD_PUBLIC_KEY and the name of the rule.

    `keys.allowed`: type or size is not the profile's. `keys.blocklist`: `blocked`, the SPKI's hash is listed.
    `keys.exponent`, `keys.small_factor`, `keys.roca`, `keys.fermat`: weak RSA. `keys.point`: an Ed25519 key that is
    no curve point or one of small order. (Points of the NIST curves, whose groups have prime order, were checked
    where the key was read.)
    """
    if blocked:
        raise blocked_key()
    algorithm = key_algorithm(public_key)
    if algorithm is None or algorithm not in profile.keys:
        known = ", ".join(sorted(profile.keys))
        _refuse(f"profile {profile.name!r} does not allow this type or size of key; it allows {known}", "keys.allowed")
    check_strength(public_key)


def check_strength(public_key: PublicKey, *, blocked: bool = False) -> None:
    """Refuse, as `check_key` does, what no profile makes good: keys that are blocked or weak by construction."""
    if blocked:
        raise blocked_key()
    if isinstance(public_key, rsa.RSAPublicKey):
        _check_rsa(public_key)
    elif isinstance(public_key, ed25519.Ed25519PublicKey) and not is_ed25519_point(public_key.public_bytes_raw()):
        _refuse("the Ed25519 public key is not a point of full order", "keys.point")


def blocked_key() -> CaError:
    """The refusal of a key on the blocklist."""
    return CaError(ErrorKind.BAD_PUBLIC_KEY, "this public key is known to others or compromised", rule=BLOCKED_KEY)


def _refuse(detail: str, rule: str) -> NoReturn:
    raise CaError(ErrorKind.BAD_PUBLIC_KEY, detail, rule=rule)


def _check_rsa(public_key: rsa.RSAPublicKey) -> None:
    numbers = public_key.public_numbers()
    modulus, exponent = numbers.n, numbers.e
    if exponent % 2 == 0 or exponent < MIN_EXPONENT or exponent.bit_length() > MAX_EXPONENT_BITS:
        _refuse("the RSA exponent is odd, at least 65537 and below 2^256", "keys.exponent")
    if has_small_factor(modulus):
        _refuse("the RSA modulus has a small factor", "keys.small_factor")
    if has_roca_fingerprint(modulus):
        _refuse("the RSA key was made by a library with the ROCA weakness (CVE-2017-15361)", "keys.roca")
    if is_fermat_factorable(modulus):
        _refuse("the factors of the RSA modulus are too close to each other", "keys.fermat")


@cache
def _primes(limit: int) -> tuple[int, ...]:
    return tuple(n for n in range(2, limit) if all(n % d for d in range(2, isqrt(n) + 1)))


@cache
def _small_product() -> int:
    return prod(_primes(SMALL_PRIME_LIMIT))


@cache
def _roca_residues() -> tuple[int, tuple[tuple[int, frozenset[int]], ...]]:
    """The product of the primes 3 to 167, and for each the residues that powers of 65537 take."""
    groups = []
    for prime in _primes(168)[1:]:
        residues = {1}
        power = 65_537 % prime
        while power not in residues:
            residues.add(power)
            power = power * 65_537 % prime
        groups.append((prime, frozenset(residues)))
    return prod(prime for prime, _ in groups), tuple(groups)


def has_small_factor(modulus: int) -> bool:
    """Whether a prime below 752 divides the modulus."""
    return gcd(modulus % _small_product(), _small_product()) != 1


def has_roca_fingerprint(modulus: int) -> bool:
    """Whether the modulus is a power of 65537 modulo each of the primes 3 to 167.

    Nemec et al., "The Return of Coppersmith's Attack" (2017), section 3: primes of the form k * M + (65537^a mod M)
    with M a primorial give such moduli always; others do once in more than 2^27.
    """
    product, groups = _roca_residues()
    residue = modulus % product
    return all(residue % prime in residues for prime, residues in groups)


def is_fermat_factorable(modulus: int, rounds: int = FERMAT_ROUNDS) -> bool:
    """Whether Fermat's method finds the factors of an odd modulus within `rounds` (CVE-2022-26320)."""
    middle = isqrt(modulus)
    if middle * middle == modulus:
        return True
    middle += 1
    difference = middle * middle - modulus
    for _ in range(rounds):
        if difference & 63 in _SQUARES_MOD_64 and isqrt(difference) ** 2 == difference:
            return True
        difference += 2 * middle + 1
        middle += 1
    return False


def is_ed25519_point(raw: bytes) -> bool:
    """Whether 32 octets are the canonical encoding of a curve point (RFC 8032 section 5.1.3) not of small order."""
    encoded = int.from_bytes(raw, "little")
    y = encoded & (1 << 255) - 1
    p = _ED25519_P
    small = {0, 1, p - 1, _ED25519_ORDER_8, p - _ED25519_ORDER_8}
    if y >= p or y in small:
        return False
    square = (y * y - 1) * pow(_ED25519_D * y * y + 1, -1, p) % p
    return pow(square, (p - 1) // 2, p) == 1
