"""Signed notes, checkpoints and inclusion proofs as text: C2SP signed-note, tlog-checkpoint and tlog-proof, version 1.

The signing key is ECDSA P-256 (signature type 0x02, whose key ID is the hash of the SubjectPublicKeyInfo alone) or
Ed25519 (0x01). What is parsed here is hostile: every parser raises CaError MALFORMED and nothing else.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from ca_server.core.tlog import HASH_SIZE, MAX_SIZE, verify_inclusion
from ca_server.core.tlog import leaf_hash as hash_leaf
from ca_server.domain.errors import CaError, ErrorKind

MAX_NOTE: Final = 262_144
"""Bytes of the longest note read: room for the 16 signatures of 5 kB that a verifier must accept, and more."""
MAX_PROOF: Final = 2 * MAX_NOTE
"""Bytes of the longest proof of inclusion read."""

_MAX_SIGNATURES = 64
_MAX_PATH = 63
_KEY_ID = 4
_ED25519 = 0x01
_ECDSA = 0x02
_PREFIX = "\u2014 "
_HEAD_LINES = 3
_PROOF_HEADER = "c2sp.org/tlog-proof@v1"

_PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: who signed, by name and key ID (four bytes), and what it is."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A parsed note; its `text`, with the final newline, means nothing until `verify_note` has seen it."""

    text: str
    signatures: tuple[NoteSignature, ...]


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What a checkpoint says."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()


class NoteKey:
    """A public key under the name by which notes know it."""

    __slots__ = ("_public_key", "key_id", "material", "name", "type")

    def __init__(self, name: str, spki_der: bytes) -> None:
        """Take a DER SubjectPublicKeyInfo. MALFORMED unless it is P-256 or Ed25519 and the name fits a note."""
        _check_name(name)
        try:
            key = load_der_public_key(spki_der)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise CaError(ErrorKind.MALFORMED, "a verifier key is no public key") from error
        if isinstance(key, ed25519.Ed25519PublicKey):
            self.type = _ED25519
            self.material = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
            self.key_id = sha256(name.encode() + b"\n" + bytes([_ED25519]) + self.material).digest()[:_KEY_ID]
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            self.type = _ECDSA
            self.material = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            self.key_id = sha256(self.material).digest()[:_KEY_ID]
        else:
            raise CaError(ErrorKind.MALFORMED, "notes are signed with ECDSA P-256 or Ed25519")
        self.name = name
        self._public_key: _PublicKey = key

    @classmethod
    def parse(cls, verifier_key: str) -> "NoteKey":
        """Read a verifier key, `name+id+key` (signed-note, "Verifier keys"). MALFORMED."""
        parts = verifier_key.split("+", 2)
        if len(parts) != len(("name", "id", "key")):
            raise CaError(ErrorKind.MALFORMED, "a verifier key has three parts")
        name, key_id, encoded = parts
        material = _decode_base64(encoded)
        spki = material[1:]
        if material[:1] == bytes([_ED25519]):
            try:
                raw = ed25519.Ed25519PublicKey.from_public_bytes(spki)
            except ValueError as error:
                raise CaError(ErrorKind.MALFORMED, "a verifier key is no public key") from error
            spki = raw.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        key = cls(name, spki)
        if material[:1] != bytes([key.type]) or key.key_id.hex() != key_id:
            raise CaError(ErrorKind.MALFORMED, "a verifier key does not have the ID of its key")
        return key

    @property
    def verifier_key(self) -> str:
        """The key as others configure it: `name+id+key`."""
        return f"{self.name}+{self.key_id.hex()}+{_base64(bytes([self.type]) + self.material)}"

    def verifies(self, text: str, signature: bytes) -> bool:
        """Whether a signature of the text is this key's."""
        try:
            if isinstance(self._public_key, ed25519.Ed25519PublicKey):
                self._public_key.verify(signature, text.encode())
            else:
                self._public_key.verify(signature, text.encode(), ec.ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


def checkpoint_text(head: TreeHead) -> str:
    """The text that a checkpoint's signatures cover. MALFORMED where the parts don't fit a note."""
    _check_name(head.origin)
    if not 0 <= head.size <= MAX_SIZE or len(head.root) != HASH_SIZE:
        raise CaError(ErrorKind.MALFORMED, "a tree head has a size below 2^63 and a root of 32 bytes")
    if any(not line or not _is_text(line) or "\n" in line for line in head.extensions):
        raise CaError(ErrorKind.MALFORMED, "an extension line is one line of text")
    return "\n".join((head.origin, str(head.size), _base64(head.root), *head.extensions)) + "\n"


def parse_checkpoint_text(text: str) -> TreeHead:
    """What a checkpoint's text says. MALFORMED."""
    if not text.endswith("\n"):
        raise CaError(ErrorKind.MALFORMED, "a checkpoint ends in a newline")
    lines = text[:-1].split("\n")
    if len(lines) < _HEAD_LINES or not all(lines):
        raise CaError(ErrorKind.MALFORMED, "a checkpoint has three lines or more, none of them empty")
    origin, size, encoded, *extensions = lines
    root = _decode_base64(encoded)
    if len(root) != HASH_SIZE:
        raise CaError(ErrorKind.MALFORMED, "a checkpoint's root is not a SHA-256 hash")
    return TreeHead(origin, _parse_number(size), root, tuple(extensions))


def encode_note(text: str, signatures: Iterable[NoteSignature]) -> bytes:
    """A signed note. MALFORMED where text or names don't fit one."""
    if not text.endswith("\n") or not _is_text(text):
        raise CaError(ErrorKind.MALFORMED, "a note is text that ends in a newline")
    lines = []
    for item in signatures:
        _check_name(item.name)
        lines.append(f"{_PREFIX}{item.name} {_base64(item.key_id + item.signature)}\n")
    if not lines:
        raise CaError(ErrorKind.MALFORMED, "a note has at least one signature")
    return (text + "\n" + "".join(lines)).encode()


def parse_note(note: bytes) -> SignedNote:
    """Read a note without trusting it. MALFORMED."""
    if len(note) > MAX_NOTE:
        raise CaError(ErrorKind.MALFORMED, "a note is too long")
    try:
        whole = note.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise CaError(ErrorKind.MALFORMED, "a note is not UTF-8") from error
    if not _is_text(whole) or not whole.endswith("\n"):
        raise CaError(ErrorKind.MALFORMED, "a note has control characters, or no newline at its end")
    body, found, tail = whole.rpartition("\n\n")
    lines = tail[:-1].split("\n")
    if not found or not tail or len(lines) > _MAX_SIGNATURES:
        raise CaError(ErrorKind.MALFORMED, "a note has no signatures, or too many")
    return SignedNote(body + "\n", tuple(map(_parse_signature, lines)))


def verify_note(note: SignedNote, keys: Sequence[NoteKey]) -> tuple[NoteKey, ...]:
    """The keys, of those given, that signed a note; signatures of others are ignored.

    UNAUTHENTICATED where none did, or a signature under the name and ID of a given key is not that key's.
    """
    signers: list[NoteKey] = []
    for item in note.signatures:
        for key in keys:
            if (item.name, item.key_id) != (key.name, key.key_id):
                continue
            if not key.verifies(note.text, item.signature):
                raise CaError(ErrorKind.UNAUTHENTICATED, f"the signature of {key.name} does not verify")
            signers.append(key)
    if not signers:
        raise CaError(ErrorKind.UNAUTHENTICATED, "no known key has signed the note")
    return tuple(signers)


def open_checkpoint(note: bytes, keys: Sequence[NoteKey]) -> TreeHead:
    """Parse and verify a signed checkpoint. MALFORMED, UNAUTHENTICATED."""
    parsed = parse_note(note)
    verify_note(parsed, keys)
    return parse_checkpoint_text(parsed.text)


def open_own_checkpoint(note: bytes, spki_ders: Sequence[bytes]) -> TreeHead:
    """Parse and verify a checkpoint of a log whose key name is its origin, by the log's public keys alone."""
    parsed = parse_note(note)
    head = parse_checkpoint_text(parsed.text)
    verify_note(parsed, [NoteKey(head.origin, spki) for spki in spki_ders])
    return head


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """A stand-alone proof (tlog-proof): `extra` holds the leaf itself, so that nothing else is needed to check it."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes = b""

    def encode(self) -> bytes:
        """The proof as text."""
        lines = [_PROOF_HEADER]
        if self.extra:
            lines.append(f"extra {_base64(self.extra)}")
        lines.append(f"index {self.index}")
        lines.extend(map(_base64, self.path))
        return ("\n".join(lines) + "\n\n").encode() + self.checkpoint

    @classmethod
    def parse(cls, proof: bytes) -> "InclusionProof":
        """Read a proof without trusting it. MALFORMED."""
        head, found, checkpoint = proof.partition(b"\n\n")
        if len(proof) > MAX_PROOF or not found or not head.isascii():
            raise CaError(ErrorKind.MALFORMED, "not a proof of inclusion")
        header, *lines = head.decode().split("\n")
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = _decode_base64(lines.pop(0).removeprefix("extra "))
        if header != _PROOF_HEADER or not lines or not lines[0].startswith("index "):
            raise CaError(ErrorKind.MALFORMED, "not a proof of inclusion")
        path = tuple(map(_decode_base64, lines[1 : _MAX_PATH + 2]))
        if len(path) > _MAX_PATH or any(len(item) != HASH_SIZE for item in path):
            raise CaError(ErrorKind.MALFORMED, "a proof of inclusion has up to 63 hashes of 32 bytes")
        return cls(_parse_number(lines[0].removeprefix("index ")), path, checkpoint, extra)

    def verify(self, spki_ders: Sequence[bytes], leaf: bytes | None = None) -> TreeHead:
        """Check that a leaf (that in `extra` unless given) is in the log of these keys; return the tree head.

        MALFORMED, UNAUTHENTICATED.
        """
        head = open_own_checkpoint(self.checkpoint, spki_ders)
        hashed = hash_leaf(self.extra if leaf is None else leaf)
        if not verify_inclusion(self.index, head.size, hashed, self.path, head.root):
            raise CaError(ErrorKind.UNAUTHENTICATED, "the proof does not lead from the leaf to the signed root")
        return head


def _parse_signature(line: str) -> NoteSignature:
    name, found, encoded = line.removeprefix(_PREFIX).partition(" ")
    if not line.startswith(_PREFIX) or not found:
        raise CaError(ErrorKind.MALFORMED, "a signature line is not in the form of one")
    _check_name(name)
    value = _decode_base64(encoded)
    if len(value) <= _KEY_ID:
        raise CaError(ErrorKind.MALFORMED, "a signature is cut off")
    return NoteSignature(name, value[:_KEY_ID], value[_KEY_ID:])


def _parse_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(MAX_SIZE)) or (text[0] == "0" and text != "0"):
        raise CaError(ErrorKind.MALFORMED, "not a decimal number without leading zeroes")
    value = int(text)
    if value > MAX_SIZE:
        raise CaError(ErrorKind.MALFORMED, "a number is too large")
    return value


def _check_name(name: str) -> None:
    if not name or "+" in name or any(character.isspace() for character in name) or not _is_text(name):
        raise CaError(ErrorKind.MALFORMED, "a key name has at least one character, and no space or plus")


def _is_text(text: str) -> bool:
    return not any(character < " " and character != "\n" for character in text)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _decode_base64(text: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CaError(ErrorKind.MALFORMED, "not base64") from error
    if _base64(value) != text:  # one value has one text
        raise CaError(ErrorKind.MALFORMED, "not canonical base64")
    return value
