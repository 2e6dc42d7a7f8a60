from __future__ import annotations

import threading

import pytest

from flawmap.run.ahead import ahead


def test_results_come_in_order_and_one_is_made_ahead_on_another_thread():
    made: list[int] = []
    threads: set[int] = set()

    def work(item: int) -> int:
        made.append(item)
        threads.add(threading.get_ident())
        return item * item

    found = ahead(work, range(5))
    assert made == []
    for number, result in enumerate(found):
        assert result == number * number
        assert len(made) <= number + 2
    assert made == list(range(5))
    assert threading.get_ident() not in threads
    assert list(ahead(work, [])) == []


def test_an_error_comes_where_its_item_stands():
    found = ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_who_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    found = ahead(lambda item: item, range(100))
    next(found)
    found.close()
    assert threading.active_count() == before
