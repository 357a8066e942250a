"""The mathematics verifier under abuse: bombs, killed workers, large batches, load, threads, alarms."""

from __future__ import annotations

import json
import pickle
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
from waiting import busy_machine

from dphlib.verify.math import MathChecker, MathVerifier
from dphlib.verify.pool import WorkerSpec

pytestmark = pytest.mark.slow

LIMIT_S = 2.0

BOMBS = {
    "tower": "9^{9^{9^{9^{9}}}}+x",
    "tower of tens": "10^{10^{10}}",
    "negative tower": "2^{-10^{9}}",
    "factorial of a factorial": "((9!)!)!+x",
    "large factorial": "(10^8)!",
    "400 parentheses": "(" * 400 + "x" + ")" * 400,
    "400 braces": "{" * 400 + "x" + "}" * 400,
    "nested roots": "\\sqrt{" * 120 + "x" + "}" * 120,
    "nested fractions": "\\frac{1}{" * 120 + "x" + "}" * 120,
    "expansion": "(x+y+z)^{500}",
    "large sum": r"\sum_{k=1}^{10^9} k^k",
    "large product": r"\prod_{k=1}^{10^8} k",
    "hard integral": r"\int_0^1 \frac{\sin(x^{x^x})}{\ln(1+e^{x^2})} dx",
    "1,900 digits": "1" * 1_900 + "x",
    "100,000 digits": "1" * 100_000,
    "200 kB": "x" * 200_000,
    "many commas": ",".join("x" * 900),
    "many equations": "=".join("x" * 900),
    "many spaces": "x" + " " * 1_900 + "y",
    "many tildes": "5" + "~" * 1_900 + "!",
    "many words": "5 " + "ab " * 600,
    "many units": "5" + r"\text{a}" * 200 + "!",
    "many signs": "-" * 1_900 + "x",
    "matrix": r"\begin{pmatrix}" + r"&".join("x" * 300) + r"\end{pmatrix}^{99}",
}
ORDINARY = [("2x+4", "2(x+2)"), ("2x+4", "2x"), (r"\sqrt{2}", "1.414214"), ("(1,2)", "(1, 2)"), ("x", "y")]


def boxed(content):
    return f"\\boxed{{{content}}}"


def mixed(number):
    """So many answers, all different, cheap ones and such that need a worker, right and wrong."""
    golds = ["7", "2x+4", r"\frac{1}{3}", r"\{1,2\}", r"\text{odd}"]
    kinds = ["{}", "{}x", "x+{}", r"\frac{{{}}}{{3}}", "{}=x=7", r"\{{{},2\}}", "2(x+{})", "{}!", "{} apples", ""]
    return [(golds[i % 5], boxed(kinds[i % 10].format(i // 50))) for i in range(number)]


@pytest.fixture(scope="module", autouse=True)
def patient():
    """No worker is given up for having been given little of the processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dphlib.verify.pool.PATIENCE", 10**6)
        yield


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_gets_an_outcome(verifier, name):
    assert verifier.verify("z", boxed(BOMBS[name])).outcome in ("wrong", "invalid", "timeout", "too_large")


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(timeout_s=LIMIT_S) as verifier:
        yield verifier


def test_bombs_in_compat_mode_get_an_outcome():
    with MathVerifier("compat", timeout_s=1.0) as verifier:
        texts = [BOMBS[name] for name in ("tower", "400 parentheses", "200 kB")]
        outcomes = {verdict.outcome for verdict in verifier.verify_many([("$x$", f"${text}$") for text in texts])}
        assert outcomes <= {"wrong", "invalid", "timeout", "no_answer"}


class Scripted(MathChecker):
    """A checker to which some texts are commands: a gold that never ends, a fault of our own."""

    def _read_strict_gold(self, gold):
        while gold == "stall":
            pass
        return super()._read_strict_gold(gold)

    def _judge(self, gold, known, answer):
        if answer == "fault":
            raise ZeroDivisionError("ours")
        return super()._judge(gold, known, answer)


@pytest.fixture
def scripted(monkeypatch):
    """Makes verifiers whose workers run `Scripted`."""
    made = partial(WorkerSpec, f"{__name__}:Scripted")
    monkeypatch.setattr("dphlib.verify.math.WorkerSpec", lambda _, *rest: made(*rest))
    return MathVerifier


def test_a_gold_that_stalls_is_nobodys_zero(scripted):
    with scripted(timeout_s=0.5) as verifier:
        verdicts = verifier.verify_many([("stall", text) for text in (boxed("x"), "no box", boxed("y"))])
    assert {verdict.reward for verdict in verdicts} == {None}
    assert "gold took over 0.5 s" in verdicts[0].detail


def test_a_fault_of_ours_is_nobodys_zero(scripted):
    with scripted() as verifier:
        verdicts = verifier.verify_many([("x+1", boxed("fault")), ("x+1", boxed("1+x"))])
    assert [verdict.reward for verdict in verdicts] == [None, 1.0]
    assert verdicts[0].detail == "ZeroDivisionError: ours"


def test_what_latex_and_sympy_cannot_handle_is_the_answers_fault(verifier, monkeypatch):
    for nonsense in (r"x+\nosuchcommand", r"\frac{x}{", "x+", r"\left(x", "x^{y^{", "@@"):
        assert verifier.verify("x+1", boxed(nonsense)).reward == 0.0, nonsense
    assert verifier.verify("x+1", boxed(r"x+\nosuchcommand")).outcome == "invalid"


@pytest.mark.parametrize("gold", [r"\frac{1}{", "", "  ", r"\boxed{1} or \boxed{2}", "}{", "$$"])
def test_a_gold_that_cannot_be_read_is_nobodys_zero(verifier, gold):
    texts = [boxed("5"), boxed(gold), "no box", "", boxed("x" * 3_000)]
    assert {verifier.verify(gold, text).reward for text in texts} == {None}


def test_2000_mixed_answers_on_one_worker_and_some_of_them_on_three_under_load():
    items = mixed(2_000)
    with MathVerifier() as verifier:
        alone = [verdict.outcome for verdict in verifier.verify_many(items)]
        pids, memory = verifier.pids(), [resident_mib(pid) for pid in verifier.pids()]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with busy_machine(3), MathVerifier(workers=3) as verifier:
        loaded = [verdict.outcome for verdict in verifier.verify_many(items[::7])]
        memory += [resident_mib(pid) for pid in verifier.pids()]
    assert loaded == alone[::7]
    assert set(alone) == {"correct", "wrong", "no_answer"}
    assert max(memory) < 400


def resident_mib(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


# --- The same verdicts from everywhere; from forked and spawned processes: test_sql_contract, of the same pool ---


def test_from_the_main_thread_and_many_others():
    results = {}
    with MathVerifier(workers=2) as verifier:

        def ask(name):
            verdicts = verifier.verify_many([(gold, boxed(content)) for gold, content in ORDINARY])
            results[name] = [verdict.outcome for verdict in verdicts]

        ask("main")
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = ["correct", "wrong", "correct", "correct", "wrong"]
    assert [results.pop(name) for name in ("main", *range(6))] == [expected] * 7 and not results


def test_a_verifier_is_sent_to_another_process_as_its_settings():
    with MathVerifier("compat", timeout_s=5.0) as verifier, pickle.loads(pickle.dumps(verifier)) as sent:
        assert sent.mode == "compat"
        assert [v.verify("2", "it is 2").outcome for v in (verifier, sent)] == ["correct"] * 2


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")
def test_an_outer_alarm_is_left_alone():
    """math-verify's own limit on time would cancel it."""
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 10**6)
        with MathVerifier() as verifier:
            assert verifier.verify("2x+4", boxed("2(x+2)")).outcome == "correct"
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0 and not rang
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("bad", ["\ud800", "\x00", "\\boxed{\ud83d}", "\x1b[31m5", "5\u2028", "\r\n" * 50])
def test_odd_characters_are_judged(verifier, bad):
    verdict = verifier.verify("x+5", boxed(bad))
    assert verdict.outcome in ("wrong", "invalid", "no_answer")
    assert json.loads(json.dumps(verdict.detail)) == verdict.detail
