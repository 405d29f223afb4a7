"""Keys, keyrings and quotas."""

from __future__ import annotations

import datetime as dt
import fnmatch
import hmac
import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from access.keyring import KeyRefused, Keyring
from access.keyring_file import KeyringError, changing_keyring, read_keyring
from access.keys import Key, Role, digest_of, is_secret_of, matches, new_secret
from access.loopback import host_problem, is_loopback
from access.quota import Quota, QuotaExceeded, Quotas

MOMENT = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


def new_key(**changes: object) -> tuple[Key, str]:
    key_id, secret = new_secret()
    key = Key(key_id, "shop", Role.INGEST, digest_of(secret), MOMENT, topics=("*",))
    return msgspec.structs.replace(key, **changes), secret


def add(path: Path, *keys: Key) -> None:
    with changing_keyring(path) as kept:
        kept.extend(keys)


def bearer(secret: str) -> str:
    return f"Bearer {secret}"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("orders", "orders", True),
        ("orders", "orders.eu", False),
        ("orders", "Orders", False),
        ("*", "anything at all", True),
        ("shop.*", "shop.orders", True),
        ("shop.*", "shop.", True),
        ("shop.*", "shop", False),
        ("shop.*", "workshop.orders", False),
        ("*.orders", "shop.orders", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*a*b*", "xxbxa", False),
        ("*a*b*", "xxaxbx", True),
        ("[ab]", "a", False),
        ("a?", "ab", False),
        ("", "a", False),
    ],
)
def test_a_star_stands_for_any_text_and_nothing_else_is_special(
    pattern: str, topic: str, expected: bool
) -> None:
    assert matches(pattern, topic) is expected


@given(st.text("ab*", max_size=12), st.text("ab", max_size=12))
def test_patterns_mean_what_they_mean_in_a_shell(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) is bool(re.match(fnmatch.translate(pattern), topic))


def test_a_key_is_kept_by_its_digest_only(tmp_path: Path) -> None:
    key, secret = new_key()
    path = tmp_path / "keys.json"

    add(path, key)

    content = path.read_text()
    assert secret not in content
    assert secret.split("_", 2)[2] not in content
    assert read_keyring(path) == (key,)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_comparison_is_made_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for an id that is not known: how long a refusal takes tells nothing."""
    key, secret = new_key()
    add(tmp_path / "keys.json", key)
    keyring = Keyring(tmp_path / "keys.json")
    compared: list[tuple[object, object]] = []
    compare = hmac.compare_digest

    def watched(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    wrong = [
        secret[:-1] + ("a" if secret[-1] != "a" else "b"),
        "agg_ffffffffffff_" + "x" * 43,
        "nonsense",
        "",
    ]
    for text in wrong:
        with pytest.raises(KeyRefused):
            keyring.find(bearer(text))
    assert [one for one, _ in compared] == [digest_of(text) for text in wrong]
    assert keyring.find(bearer(secret)) == key
    assert not is_secret_of(secret, None)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer  ", "Bearer {}x", "Bearer {} {}", "Bearer \udc80{}"],
)
def test_what_is_not_a_key_opens_nothing(tmp_path: Path, header: str) -> None:
    key, secret = new_key()
    add(tmp_path / "keys.json", key)

    with pytest.raises(KeyRefused) as refused:
        Keyring(tmp_path / "keys.json").find(header.replace("{}", secret))

    assert not refused.value.missing
    assert secret not in refused.value.message


def test_changes_of_the_file_are_noticed_and_a_slip_locks_nobody_out(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "keys.json"
    first, first_secret = new_key()
    second, second_secret = new_key()
    add(path, first)
    keyring = Keyring(path, reread_seconds=1.0, clock=clock)
    add(path, second)

    clock.now += 0.9
    with pytest.raises(KeyRefused):
        keyring.find(bearer(second_secret))
    clock.now += 0.2
    assert keyring.find(bearer(second_secret)) == second

    good = path.read_bytes()
    for broken in (b"{", b"", b'{"version": 2, "keys": []}', b'{"version": 1, "keys": [{"id": 7}]}'):
        path.write_bytes(broken)
        clock.now += 2
        assert keyring.find(bearer(first_secret)) == first
    path.unlink()
    clock.now += 2
    assert keyring.find(bearer(first_secret)) == first

    path.write_bytes(good)
    with changing_keyring(path) as keys:
        keys[0] = msgspec.structs.replace(first, revoked_at=MOMENT)
    clock.now += 2
    with pytest.raises(KeyRefused, match="was revoked"):
        keyring.find(bearer(first_secret))
    assert keyring.find(bearer(second_secret)) == second


def test_a_secret_that_is_mounted_is_followed_when_its_directory_is_swapped(tmp_path: Path) -> None:
    """The kubelet writes a new directory, and turns a link that all files go through, in one step."""
    clock, mount = Clock(), tmp_path / "mounted"
    (first, first_secret), (second, second_secret) = new_key(), new_key()
    mount.mkdir()
    for version, key in (("..v1", first), ("..v2", second)):
        (mount / version).mkdir()
        add(mount / version / "keys.json", key)
        (mount / version / "keys.json").chmod(0o440)
    (mount / "..data").symlink_to("..v1")
    (mount / "keys.json").symlink_to("..data/keys.json")
    keyring = Keyring(mount / "keys.json", reread_seconds=1.0, clock=clock)
    assert keyring.find(bearer(first_secret)) == first

    (mount / "..next").symlink_to("..v2")
    (mount / "..next").rename(mount / "..data")
    clock.now += 2
    assert keyring.find(bearer(second_secret)) == second
    with pytest.raises(KeyRefused):
        keyring.find(bearer(first_secret))


def test_changes_of_many_processes_come_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    keys = [new_key()[0] for _ in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: add(path, key), keys))

    assert {key.id for key in read_keyring(path)} == {key.id for key in keys}
    assert sorted(file.name for file in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no keyring"),
        ("{", "cannot be understood"),
        (json.dumps({"version": 7, "keys": []}), "version 7"),
        (json.dumps({"version": 1, "keys": [], "more": 1}), "cannot be understood"),
    ],
)
def test_a_keyring_that_cannot_be_used_says_why(tmp_path: Path, content: str | None, sentence: str) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(KeyringError, match=sentence):
        Keyring(path)


def test_rights_of_the_file_stay_as_they_were_set(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add(path, new_key()[0])
    path.chmod(0o640)
    add(path, new_key()[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_quota_lets_exactly_its_rate_through_over_time() -> None:
    clock = Clock()
    quota = Quota(new_key(events_per_second=100.0)[0], clock)
    sent = 0
    while clock.now < 1_060:
        try:
            quota.require()
        except QuotaExceeded as exceeded:
            clock.now += exceeded.retry_after + 1e-6
        else:
            quota.take_events(7)
            sent += 7
    assert 6_000 <= sent <= 6_000 + 100 + 7


def test_a_request_larger_than_a_second_s_worth_gets_in_and_is_waited_for() -> None:
    clock = Clock()
    quota = Quota(new_key(bytes_per_second=1_000.0)[0], clock)
    quota.require()
    quota.take_bytes(11_000)
    with pytest.raises(QuotaExceeded) as exceeded:
        quota.require()
    assert exceeded.value.retry_after == pytest.approx(10.0)
    assert exceeded.value.limit == "1,000 bytes per second"
    clock.now += 10.001
    quota.require()


def test_limits_that_were_changed_hold_at_once() -> None:
    quotas = Quotas(Clock())
    key, _ = new_key(events_per_second=1.0)
    quotas.of(key).take_events(1_000)
    with pytest.raises(QuotaExceeded):
        quotas.of(key).require()
    quotas.of(msgspec.structs.replace(key, events_per_second=None)).require()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("example.com", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("2130706433", False),
    ],
)
def test_only_addresses_that_mean_this_machine_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "origin", "let_in"),
    [
        ("127.0.0.1:8080", None, True),
        ("localhost", None, True),
        ("[::1]:8080", None, True),
        (None, None, True),
        ("rebound.example:8080", None, False),
        ("127.0.0.1.example", None, False),
        ("", None, False),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("127.0.0.1:8080", "http://localhost:3000", True),
        ("127.0.0.1:8080", "http://page.example", False),
        ("127.0.0.1:8080", "https://localhost.example", False),
        ("127.0.0.1:8080", "null", False),
        ("127.0.0.1:8080", "file://", False),
        ("127.0.0.1:8080", "", False),
    ],
)
def test_without_keys_no_web_page_of_elsewhere_gets_in(
    host: str | None, origin: str | None, let_in: bool
) -> None:
    assert (host_problem(host, origin) is None) is let_in
