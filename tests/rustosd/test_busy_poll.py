"""How long to look on instead of sleeping."""

from rustosd.busy_poll import MAX_PASSES, BusyPoll


def test_after_work_it_looks_on_for_its_while_and_no_longer():
    poll = BusyPoll(100)
    assert not poll.looking
    assert poll.go_on(0, worked=True, found=False) and poll.looking
    assert poll.go_on(99, worked=False, found=False)
    assert not poll.go_on(100, worked=False, found=False) and not poll.looking
    assert poll.vain_looks == 2


def test_each_vain_while_doubles_the_chances_let_pass_and_a_find_forgets_them():
    poll = BusyPoll(100)
    for passes in (1, 3, 7, 15, 31, 63, MAX_PASSES):
        assert poll.go_on(0, worked=True, found=True)
        assert not poll.go_on(100, worked=False, found=False)
        for _ in range(passes):
            assert not poll.go_on(200, worked=True, found=True)
    assert poll.go_on(0, worked=True, found=True)
    assert poll.go_on(50, worked=True, found=True) and poll.go_on(60, worked=True, found=True)


def test_without_a_while_it_never_looks_on():
    assert not BusyPoll(0).go_on(0, worked=True, found=True)
