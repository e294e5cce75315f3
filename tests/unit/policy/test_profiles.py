"""Profiles: what is shipped loads, every mistake is one line with key and remedy, and content decides the hash."""

import msgspec
import pytest

from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import ConfigurationError
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.profiles import Profile, load_profile

SHIPPED = ("default", "short", "mutual", "listener", "ocsp-responder")


@pytest.fixture(scope="module")
def default_text(support) -> str:
    return (support.PROFILES / "default.toml").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_load_and_rebuild_from_their_body(support, name):
    profile = support.profile_named(name)
    again = Profile.from_body(profile.body)
    assert again == profile
    assert again.hash == profile.hash
    assert (again.names, again.validity, again.extensions) == (profile.names, profile.validity, profile.extensions)


def test_every_shipped_file_is_tested(support):
    assert {path.stem for path in support.PROFILES.glob("*.toml")} == set(SHIPPED)


def test_internal_profiles_are_for_the_server_alone(support):
    for name in ("listener", "ocsp-responder"):
        assert support.profile_named(name).frontends == {Protocol.INTERNAL}


def test_extra_domains_are_merged_into_the_hash(default_text):
    plain = load_profile("default", default_text, where="f")
    extended = load_profile("default", default_text, where="f", extra_domains=("Example.COM", ".corp.example"))
    assert {"example.com", "corp.example"} <= extended.names.dns_suffixes
    assert plain.hash != extended.hash
    assert load_profile("default", default_text, where="g").hash == plain.hash
    assert load_profile("other", default_text, where="f").hash != plain.hash


def test_extra_domains_stay_out_of_profiles_that_do_not_include_them(support):
    assert "example.com" not in support.profile_named("listener").names.dns_suffixes


def test_layout_and_comments_do_not_change_the_hash(default_text):
    changed = "# another comment\n" + default_text.replace("max = 100", "max   =   100 # as before")
    assert load_profile("default", changed, where="f").hash == load_profile("default", default_text, where="f").hash


MISTAKES = [
    ("unknown key", "max = 100", "maximum = 100", "names.maximum", "known here: dns,"),
    ("unknown section", "[subject]", "[subjekt]", "subjekt", "known here: description"),
    ("not TOML", "[names]", "[names", "syntax", "not TOML"),
    ("frontend", '"est"', '"xyz"', "frontends[1]", "write one of acme, est"),
    ("key", "keys]\nallowed = [", 'keys]\nallowed = ["rsa-1024", ', "keys.allowed[0]", "rsa-2048"),
    ("no keys", 'allowed = ["ec-p256"', "allowed = [] #", "keys.allowed", "length >= 1"),
    ("names", "max = 100", "max = 101", "names.max", "<= 100"),
    ("suffix", '"home.arpa"', '"home arpa"', "names.dns_suffixes", "such as example.com"),
    ("network", "10.0.0.0/8", "10.0.0.1/8", "names.ip_networks", "10.0.0.0/8"),
    ("pattern", "max = 100", 'dns_patterns = ["web.*.?"]', "names.dns_patterns", "fixed character"),
    ("pattern syntax", "max = 100", 'dns_patterns = ["we_b.x.test"]', "names.dns_patterns", "labels of"),
    ("URI prefix", "max = 100", 'uri_prefixes = ["https://a.test"]', "names.uri_prefixes", "slash at the end"),
    ("any outside", "max = 100", "any = true", "names.any", "frontends internal and admin"),
    ("default > maximum", 'maximum = "90d"', 'maximum = "89d"', "validity.default", "at most validity.maximum"),
    ("maximum", 'maximum = "90d"', 'maximum = "40000d"', "validity.maximum", "36525d"),
    ("duration", 'default = "90d"', 'default = "90"', "validity.default", "matching regex"),
    ("backdate", 'backdate = "1h"', 'backdate = "3d"', "validity.backdate", "at most 2d"),
    ("CA usage", '["digital_signature"]', '["key_cert_sign"]', "extensions.key_usage", "RFC 5280 section 4.2.1.3"),
    ("EC enciphers", '["digital_signature"]', '["key_encipherment"]', "extensions.key_usage", "RFC 8813"),
    ("Ed25519 agrees", '["digital_signature"]', '["key_agreement"]', "extensions.key_usage", "RFC 9295"),
    ("RSA agrees", '["key_encipherment"]', '["key_agreement"]', "extensions.key_usage_rsa", "RFC 4055"),
    ("EKU", '"server_auth"', '"serverauth"', "extensions.extended_key_usage", "or an OID"),
    ("responder", '"server_auth"', '"ocsp_signing"', "extensions.extended_key_usage", "RFC 6960 section 4.2.2.2"),
    ("nocheck", "[extensions]", "[extensions]\nocsp_nocheck = true", "extensions.ocsp_nocheck", "RFC 6960"),
    (
        "extra twice",
        "[extensions]",
        '[extensions]\nextra = [{oid = "2.5.29.17", der = "0500"}]',
        "extensions.extra.oid",
        "does not set else",
    ),
    (
        "extra DER",
        "[extensions]",
        '[extensions]\nextra = [{oid = "1.2.3.4", der = "0501"}]',
        "extensions.extra.der",
        "one DER element",
    ),
    ("country", "[subject]", '[subject]\ncountry = "Switzerland"', "subject.country", "matching regex"),
    (
        "fixed and copied",
        "[subject]",
        '[subject]\norganization = "A"\nfrom_csr = ["organization"]',
        "subject.from_csr",
        "keep one",
    ),
    ("CAA", "[names]", 'caa = "on"\n[names]', "caa", "write one of off, log, enforce"),
    ("CAA without ACME", '["acme", "est", "scep", "admin"]', '["est"]\ncaa = "log"', "caa", "only with frontend acme"),
    ("empty subject", "max = 100", "allow_empty = true", "names.allow_empty", "RFC 5280 section 4.1.2.6"),
]


@pytest.mark.parametrize(
    ("before", "after", "key", "remedy"),
    [row[1:] for row in MISTAKES],
    ids=[row[0] for row in MISTAKES],
)
def test_a_mistake_is_one_line_with_file_key_and_remedy(default_text, before, after, key, remedy):
    assert before in default_text
    with pytest.raises(ConfigurationError) as caught:
        load_profile("default", default_text.replace(before, after, 1), where="/etc/profiles/default.toml")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"/etc/profiles/default.toml: {key}")
    assert remedy in line


def test_tls_without_a_usable_key_usage_is_refused(default_text):
    text = default_text.replace('["digital_signature"]', '["content_commitment"]').replace("key_usage_rsa", "#")
    with pytest.raises(ConfigurationError, match=r"RFC 5280 section 4\.2\.1\.12"):
        load_profile("default", text, where="f")


def test_nothing_allowed_is_a_mistake_and_not_everything(default_text):
    lines = [line for line in default_text.splitlines() if not line.startswith(("dns_", "ip_", "include_", "allow_"))]
    with pytest.raises(ConfigurationError, match="allow some names"):
        load_profile("default", "\n".join(lines), where="f")


def test_a_bad_extra_domain_names_its_setting(default_text):
    with pytest.raises(ConfigurationError, match=r"policy\.extra_domains = 'a b'"):
        load_profile("default", default_text, where="f", extra_domains=("a b",))


def test_a_body_that_was_changed_is_refused(support):
    tree = msgspec.json.decode(support.profile_named("default").body)
    tree["profile"]["validity"]["maximum"] = "1d"
    with pytest.raises(ConfigurationError, match=r"validity\.default"):
        Profile.from_body(msgspec.json.encode(tree))
    with pytest.raises(ConfigurationError, match="not a profile body"):
        Profile.from_body(b"{}")


def test_key_usage_follows_the_kind_of_key(support):
    rules = support.profile_named("default").extensions
    assert rules.key_usage_for(KeyAlgorithm.RSA2048) == {"digital_signature", "key_encipherment"}
    assert rules.key_usage_for(KeyAlgorithm.P256) == {"digital_signature"}
    assert rules.key_usage_for(KeyAlgorithm.ED25519) == {"digital_signature"}
