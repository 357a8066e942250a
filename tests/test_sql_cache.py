"""Results of slow golds on disk: found again by content, never trusted when damaged, never in the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3

import pytest
from databases import ENDLESS, fenced, make_database

from dphlib.verify.sql import SqlVerifier

SLOW = " WHERE (SELECT count(*) FROM (" + ENDLESS.strip() + " SELECT x FROM r LIMIT 200000)) > 0"
GOLD = "SELECT id FROM t" + SLOW
ANSWER = fenced("SELECT id FROM t")


@pytest.fixture
def root(tmp_path):
    make_database(tmp_path / "databases", "club")
    return tmp_path / "databases"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def entries(cache) -> list:
    return sorted(cache.iterdir())


def outcome(root, cache, gold=GOLD, answer=ANSWER, **settings) -> str:
    with SqlVerifier(root, cache_dir=cache, **settings) as verifier:
        return verifier.verify("club", gold, answer).outcome


def rewrite(path, change) -> None:
    """Changes an entry's rows under a hash that fits."""
    entry = json.loads(path.read_bytes().partition(b"\n")[2])
    entry["rows"] = change(entry["rows"])
    body = json.dumps(entry).encode()
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def test_an_entry_is_what_the_next_verifier_reads(root, cache):
    assert outcome(root, cache) == "correct"
    (entry,) = entries(cache)
    rewrite(entry, lambda rows: rows[1:])
    assert outcome(root, cache) == "wrong"  # so it was read, not run again
    with SqlVerifier(root) as plain:
        assert plain.verify("club", GOLD, ANSWER).outcome == "correct"


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "text", "folder"])
def test_a_damaged_entry_is_computed_again(root, cache, damage):
    outcome(root, cache)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
        entry.write_bytes({"flipped": flipped, "short": whole[:-9], "empty": b"", "text": b"x"}[damage])
        assert entry.read_bytes() != whole
    assert outcome(root, cache) == "correct"
    if damage != "folder":
        assert entry.read_bytes() == whole and len(entries(cache)) == 1


def test_the_key_is_content_gold_mode_limits(root, cache):
    path = root / "club" / "club.sqlite"
    outcome(root, cache)
    os.utime(path, ns=(1, 1))
    shutil.copyfile(path, root / "copy")
    os.replace(root / "copy", path)
    outcome(root, cache)
    assert len(entries(cache)) == 1  # another time and inode, the same content
    outcome(root, cache, mode="spider")
    outcome(root, cache, max_rows=50)
    outcome(root, cache, gold=GOLD + " -- other")
    assert len(entries(cache)) == 4
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM t WHERE id = 1")
    connection.commit()
    connection.close()
    assert outcome(root, cache) == "correct" and len(entries(cache)) == 5
    names = {json.loads(e.read_bytes().partition(b"\n")[2])["key"]["sqlite"] for e in entries(cache)}
    assert names == {sqlite3.sqlite_version}


@pytest.mark.parametrize(
    "gold",
    [
        "SELECT id FROM t",  # cheap
        "SELECT abs(random()) FROM t" + SLOW,
        "SELECT date('now')" + SLOW,
        "SELECT CURRENT_TIMESTAMP" + SLOW,
        "SELECT datetime( )" + SLOW,
        "SELECT nothing FROM t" + SLOW,
        ENDLESS + "SELECT count(*) FROM r",
    ],
)
def test_what_is_not_kept(root, cache, gold):
    outcome(root, cache, gold=gold, max_ops=20_000_000)
    assert entries(cache) == []


@pytest.mark.parametrize("mode", ["bird", "spider", "paper"])
def test_every_kind_of_value_comes_back_as_it_was(root, cache, mode):
    values = "NULL, x'00ff', x'', 9e999, -9e999, 9007199254740993, -9223372036854775808, 0.1 + 0.2, 1.0, 1, '1', "
    values += "'\u2028', '', '\"\\', '\U0001f600', char(55296), data"
    gold, answer = f"SELECT {values} FROM t{SLOW}", fenced(f"SELECT {values} FROM t")
    for _ in range(2):
        assert outcome(root, cache, gold, answer, mode=mode) == "correct"
    assert len(entries(cache)) == 1
    # The two texts that are no UTF-8 (rows 5 and 6) are as apart as without a cache.
    one, other = f"SELECT data FROM t{SLOW} AND id = 5", fenced("SELECT data FROM t WHERE id = 6")
    for _ in range(2):
        assert outcome(root, cache, one, other, mode=mode) == ("wrong" if mode == "bird" else "correct")


def test_a_folder_that_cannot_be_written_only_costs_time(root, cache):
    with SqlVerifier(root, cache_dir=cache) as verifier:
        shutil.rmtree(cache)
        cache.write_text("a file where the folder was")
        assert verifier.verify("club", GOLD, ANSWER).outcome == "correct"


def test_a_killed_worker_does_not_run_the_gold_again(root, cache):
    with SqlVerifier(root, cache_dir=cache, timeout_s=1.0) as verifier:
        assert verifier.verify("club", GOLD, ANSWER).outcome == "correct"
        rewrite(entries(cache)[0], lambda rows: rows[1:])
        (pid,) = verifier.pids()
        os.kill(pid, 9)
        assert verifier.verify("club", GOLD, fenced("SELECT id FROM t WHERE 1")).outcome == "wrong"


def test_answers_still_cannot_write(root, cache, tmp_path):
    with SqlVerifier(root, cache_dir=cache) as verifier:
        verifier.verify("club", GOLD, ANSWER)
        limits = [f"/proc/{pid}/limits" for pid in verifier.pids() if os.path.exists(f"/proc/{pid}/limits")]
        for path in limits:
            with open(path) as file:
                line = next(line for line in file if line.startswith("Max file size"))
            assert line.split()[3] == "0"
        assert verifier.verify("club", GOLD, fenced(f"VACUUM INTO '{tmp_path}/copy'")).outcome == "forbidden"
