"""Budget and Account."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_index_refine.graders.account import Account, Budget, current_account


@pytest.mark.parametrize("name", ["calls", "tokens", "seconds"])
@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_budget_that_allows_nothing_is_refused(name, limit):
    with pytest.raises(ValueError, match=name):
        Budget(**{name: limit})


def test_calls_are_counted_up_to_the_budget_from_many_threads():
    account = Account(Budget(calls=100))
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: account.open_call(), range(500)))
    assert opened.count(True) == account.calls == 100
    assert account.exhausted() == "the budget of 100 calls is used up"


def test_tokens_of_calls_in_flight_are_held():
    account = Account(Budget(tokens=100))
    assert account.open_call(60)
    assert not account.open_call(60)
    account.release(60)
    account.charge(prompt_tokens=30, completion_tokens=10)
    assert account.open_call(60)
    account.release(60)
    account.charge(prompt_tokens=60)
    assert account.exhausted() == "the budget of 100 tokens is used up"


def test_without_a_budget_nothing_is_exhausted():
    account = Account()
    account.charge(prompt_tokens=10**9)
    assert account.open_call(10**9)
    assert account.exhausted() is None
    assert account.seconds_left() is None


def test_the_deadline():
    account = Account(Budget(seconds=10))
    assert 9 < account.seconds_left() <= 10
    account.started -= 11
    assert account.seconds_left() == 0
    assert not account.open_call()
    assert account.exhausted() == "the deadline of 10 s has passed"


def test_the_current_account_is_the_querys_or_a_new_one():
    assert current_account() is not current_account()
    with Account().active() as outer:
        assert current_account() is outer
        with Account().active() as inner:
            assert current_account() is inner
        assert current_account() is outer


def test_a_failure_is_noted_once():
    account = Account()
    for failure in ("a", "b", "a"):
        account.note(failure)
    assert account.failures == ["a", "b"]


def test_a_part_has_a_bill_of_its_own_which_the_whole_pays_too_and_limits():
    whole = Account(Budget(calls=3, tokens=100))
    one, other = whole.part(), whole.part()
    assert one.open_call(60)
    assert not other.open_call(60)
    one.release(60)
    one.charge(prompt_tokens=20, completion_tokens=10, cached=2)
    one.note("a")
    assert other.open_call(60)
    assert other.open_call()
    assert one.exhausted() == other.exhausted() == "the budget of 3 calls is used up"
    assert not one.open_call()
    bills = [account.bill() for account in (one, other, whole)]
    assert [bill["llm_calls"] for bill in bills] == [1, 2, 3]
    assert bills[2] == {name: bills[0][name] + bills[1][name] for name in bills[2]}
    assert (one.failures, other.failures, whole.failures) == (["a"], [], ["a"])
    assert one.kept is whole.kept
    whole.started -= 11
    assert whole.part().started == whole.started
