"""Ctrl-C is heard, wherever the main thread happens to be."""

import contextlib
import os
import signal
import sys
import threading

import pytest

from keras_scaled_l2.interrupts import kept_interrupt


def press():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def python_handler():
    """The handler that Python starts with, whatever the runner of the tests set."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_is_raised_at_once_where_it_is_heard():
    with pytest.raises(KeyboardInterrupt), kept_interrupt():
        press()


def test_interrupt_that_was_dropped_is_raised_at_the_next_check():
    def drops():
        with contextlib.suppress(KeyboardInterrupt):
            press()

    heard = []
    with pytest.raises(KeyboardInterrupt), kept_interrupt() as check:
        check()
        drops()
        heard.append("went on")
        check()
        heard.append("never reached")
    assert heard == ["went on"]


class Ends:
    """Does something as it is destroyed, where Python drops what is raised."""

    def __init__(self, end):
        self.end = end

    def __del__(self):
        self.end()


def test_interrupt_that_python_drops_is_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with pytest.raises(KeyboardInterrupt), kept_interrupt() as check:
        Ends(press)
        Ends(lambda: 1 / 0)
        check()
    assert [dropped.exc_type for dropped in printed] == [ZeroDivisionError]
    assert sys.unraisablehook == printed.append


def test_error_that_compiled_code_makes_of_an_interrupt_is_the_interrupt():
    def compiled():
        try:
            press()
        except KeyboardInterrupt as interrupt:
            raise SystemError("returned a result with an exception set") from interrupt

    with pytest.raises(KeyboardInterrupt) as caught, kept_interrupt():
        compiled()
    assert isinstance(caught.value.__cause__, SystemError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_inside_another_hears_what_the_outer_one_heard():
    with pytest.raises(KeyboardInterrupt), kept_interrupt() as check:
        with contextlib.suppress(KeyboardInterrupt):
            press()
        with pytest.raises(KeyboardInterrupt), kept_interrupt() as inner:
            inner()
        with pytest.raises(KeyboardInterrupt), kept_interrupt():
            raise SystemError("returned a result with an exception set")
        check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_interrupt_is_made_up():
    with kept_interrupt() as check:
        check()
    with pytest.raises(ZeroDivisionError), kept_interrupt():
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handler_is_put_back_after_an_interrupt():
    with pytest.raises(KeyboardInterrupt), kept_interrupt():
        press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handler_of_somebody_else_stays():
    def own(number, frame):
        pass

    signal.signal(signal.SIGINT, own)
    with kept_interrupt() as check:
        assert signal.getsignal(signal.SIGINT) is own
        check()
    assert signal.getsignal(signal.SIGINT) is own


def test_thread_may_use_it_without_setting_a_handler():
    failures = []

    def work():
        try:
            with kept_interrupt() as check:
                check()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
