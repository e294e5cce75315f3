"""Profiles: any TOML gives a Profile, which its body gives again, or a ConfigurationError of one line."""

import tomlkit
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ca_server.domain.errors import ConfigurationError
from ca_server.domain.profiles import Profile, load_profile

GOOD = {
    "description": "A profile",
    "issuer": "issuing",
    "frontends": ["acme"],
    "requesters": ["*"],
    "approval": "none",
    "allow_hold": False,
    "pkilint": "shape",
    "names": {"dns_suffixes": ["a.test"], "ip_networks": ["10.0.0.0/8"], "max": 10},
    "subject": {"common_name": "first-dns", "organization": "O"},
    "keys": {"allowed": ["ec-p256", "rsa-2048"]},
    "validity": {"default": "90d", "maximum": "90d", "backdate": "1h"},
    "extensions": {
        "key_usage": ["digital_signature"],
        "extended_key_usage": ["server_auth", "1.2.3.4"],
        "extra": [{"oid": "1.2.3.5", "der": "0500"}],
    },
}
KEYS = [
    *GOOD,
    *(key for section in GOOD.values() if isinstance(section, dict) for key in section),
    "dns",
    "dns_patterns",
    "email_domains",
    "uri_prefixes",
    "any",
    "allow_empty",
    "include_extra_domains",
    "from_csr",
    "ocsp_nocheck",
    "country",
    "oid",
    "der",
]
WORDS = [
    "acme", "internal", "admin", "a.test", "*.a.test", ".a.test", "10.0.0.1/8", "::/0", "ec-p256", "rsa-2048",
    "ed25519", "90d", "0s", "9999999w", "ocsp_signing", "server_auth", "key_agreement", "encipher_only", "1.2.3",
    "2.5.29.15", "0500", "05", "zz", "csr", "none", "hold", "urn:a:", "https://a.test/", "CH", "", " ", "\n", "\x7f",
]  # fmt: skip
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=12),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.datetimes(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(min_size=1, max_size=6)), inner, max_size=4)
    ),
    max_leaves=8,
)


def load(text: str, extra_domains: tuple[str, ...] = ()) -> Profile | None:
    """The profile, or None where it is refused in one line."""
    try:
        profile = load_profile("name", text, where="name.toml", extra_domains=extra_domains)
    except ConfigurationError as error:
        assert str(error).startswith("name.toml: ")  # noqa: PT017 - any other exception fails the test
        assert str(error).isprintable()  # noqa: PT017
        return None
    again = Profile.from_body(profile.body)
    assert (again, again.names, again.validity, again.extensions) == (
        profile,
        profile.names,
        profile.validity,
        profile.extensions,
    )
    assert profile.validity.backdate < profile.validity.default <= profile.validity.maximum
    return profile


def test_the_sample_is_good():
    assert load(tomlkit.dumps(GOOD)) is not None


@given(st.text(max_size=200))
@example("[" * 5000)
@example("a = " + "[" * 5000)
@example("a = " + "1" * 5000)
@example("a = 1\na = 2")
@settings(deadline=None)
def test_any_text(text):
    assert load(text) is None


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
@settings(deadline=None)
def test_any_toml(tree):
    load(tomlkit.dumps(tree))


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(KEYS), VALUES), min_size=1, max_size=2))
@settings(deadline=None, max_examples=300)
def test_one_thing_changed_in_a_good_profile(changes):
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in GOOD.items()}
    for section, key, value in changes:
        inner = tree.get(section)
        if isinstance(inner, dict):
            inner[key] = value
        else:
            tree[key] = value
    load(tomlkit.dumps(tree))


@given(st.lists(st.sampled_from(WORDS), max_size=4), st.sampled_from([
    "names.dns", "names.dns_suffixes", "names.dns_patterns", "names.ip_networks", "names.email_domains",
    "names.uri_prefixes", "subject.from_csr", "keys.allowed", "extensions.key_usage", "extensions.extended_key_usage",
    "frontends", "requesters",
]))  # fmt: skip
@settings(deadline=None, max_examples=300)
def test_lists_of_words(words, key):
    tree = {name: dict(value) if isinstance(value, dict) else value for name, value in GOOD.items()}
    section, _, name = key.rpartition(".")
    (tree[section] if section else tree)[name] = words
    load(tomlkit.dumps(tree))


@given(st.lists(st.text(max_size=20), max_size=3).map(tuple))
@settings(deadline=None)
def test_any_extra_domains(domains):
    tree = GOOD | {"names": {"include_extra_domains": True}}
    load(tomlkit.dumps(tree), domains)


@given(st.binary(max_size=200))
def test_any_stored_body(body):
    try:
        Profile.from_body(body)
    except ConfigurationError:
        return
    raise AssertionError("no body of ours")
