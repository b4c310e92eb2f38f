"""The pool of buffers."""

from __future__ import annotations

from tdx.data.buffers import BufferPool


def test_a_buffer_given_back_is_the_next_one_taken() -> None:
    pool = BufferPool(4096)
    first, second = pool.take(), pool.take()
    assert first is not second
    assert len(first) == 4096
    pool.give(first)
    assert pool.take() is first


def test_no_more_buffers_are_kept_than_the_pool_may() -> None:
    pool = BufferPool(4096, kept=1)
    first, second = pool.take(), pool.take()
    pool.give(first)
    pool.give(second)
    assert pool.take() is first
    assert pool.take() is not second


def test_a_buffer_that_is_not_kept_takes_no_memory_though_a_failure_still_refers_to_it() -> None:
    pool = BufferPool(1 << 20, kept=0)
    buffer = pool.take()
    buffer[:] = b"x" * len(buffer)
    # As the frames of a failure's traceback do, until the garbage collector comes by.
    part = buffer[10:20]
    pool.give(buffer)
    # Pages that were given back to the system are fresh ones when they are looked at again.
    assert bytes(part) == bytes(10)
