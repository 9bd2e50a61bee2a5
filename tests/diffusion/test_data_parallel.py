"""Rows on several threads: the same answers in the same order, gradients as asked, and errors that come out."""

import threading

import pytest
import torch

from diffusion.data_parallel import data_parallel


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_rows_come_back_in_order_from_as_many_threads_as_there_are(threads, rows):
    names, seen = set(), []

    def double(x, y):
        names.add(threading.current_thread().name)
        seen.append((len(x), torch.get_num_threads()))
        return 2 * x + y

    x = torch.arange(rows, dtype=torch.float32)[:, None]
    assert torch.equal(data_parallel(double, x, -x), x)
    groups = {1: 1, 2: 2, 3: 2, 8: 4}[threads]
    groups = min(groups, {1: 1, 2: 2, 5: 4, 16: 16}[rows])
    assert len(seen) == groups and sum(size for size, _ in seen) == rows
    assert {each for _, each in seen} == {threads // groups}
    assert all(name.startswith("rows") for name in names) == (groups > 1)
    assert torch.get_num_threads() == threads


def test_a_thread_that_is_started_later_has_all_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    data_parallel(torch.neg, torch.ones(4))
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    torch.set_num_threads(before)
    assert found == [2]


def test_gradients_are_off_where_the_caller_has_them_off(threads):
    weight = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        assert not data_parallel(lambda x: x * weight, torch.ones(4)).requires_grad
    assert data_parallel(lambda x: x * weight, torch.ones(4)).requires_grad
    with torch.inference_mode():
        assert data_parallel(lambda x: x * 2, torch.ones(4)).is_inference()


def test_an_error_in_one_lane_is_the_callers(threads):
    def broken(x):
        if bool((x == 3).any()):
            raise torch.OutOfMemoryError("row 3")
        return x

    with pytest.raises(torch.OutOfMemoryError, match="row 3"):
        data_parallel(broken, torch.arange(4))
    assert torch.equal(data_parallel(broken, torch.arange(3)), torch.arange(3))
