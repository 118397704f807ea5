"""Handles: what was put on goes once, the last first, and uncovers what it covered."""

import pytest

from keras_scaled_l2.handles import Handle, shadow


class Thing:
    def call(self):
        return "its own"


def test_removed_twice_undoes_once_and_the_last_first():
    done = []
    handle = Handle(lambda: done.append("first"), lambda: done.append("last"))
    assert done == []
    handle.remove()
    assert done == ["last", "first"]
    handle.remove()
    assert done == ["last", "first"]


def test_context_removes_also_after_an_error():
    done = []
    with pytest.raises(ZeroDivisionError), Handle(lambda: done.append(1)) as handle:
        assert handle.remove and done == []
        raise ZeroDivisionError
    assert done == [1]


def test_shadows_of_shadows_uncover_what_each_has_covered():
    thing = Thing()
    outer = shadow(thing, "call", lambda: "first")
    inner = shadow(thing, "call", lambda: "second")
    assert thing.call() == "second"
    inner.remove()
    assert thing.call() == "first"
    outer.remove()
    assert thing.call() == "its own"
    assert vars(thing) == {}


def test_undo_that_fails_leaves_the_others_to_be_removed():
    done = []

    def fail():
        raise ZeroDivisionError

    handle = Handle(lambda: done.append(1), fail)
    with pytest.raises(ZeroDivisionError):
        handle.remove()
    handle.remove()
    assert done == [1]
