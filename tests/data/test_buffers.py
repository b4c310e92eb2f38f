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
