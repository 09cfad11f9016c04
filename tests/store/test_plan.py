"""The plan against a plain model of it: dictionaries of lists instead of sorted arrays."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspipe.store.errors import SettingError, StoreError
from cspipe.store.plan import ImageTable, make_plan, match
from cspipe.store.table import Rows

IMAGES = st.lists(st.integers(1, 9), max_size=40)  # few hashes, so that many are equal


def hashes(images):
    sha256 = np.zeros((len(images), 32), np.uint8)
    sha256[:, -1] = images
    return sha256


def table_of(images):
    return ImageTable(hashes(images), np.array(images, np.int64), [f"new/{i}" for i in range(len(images))])


def rows_of(images):
    count = len(images)
    return Rows(hashes(images), np.zeros(count, np.int64), ["old"] * count, np.ones(count, np.bool_))


@given(rows=IMAGES, images=IMAGES)
def test_the_kth_row_of_a_hash_gets_the_kth_image_of_it(rows, images):
    places = defaultdict(list)
    for place, image in enumerate(images):
        places[image].append(place)
    expected = [places[row].pop(0) if places[row] else -1 for row in rows]
    assert match(hashes(rows), hashes(images)).tolist() == expected


def test_a_void_row_matches_nothing_not_even_another_void_hash():
    assert match(hashes([0, 1]), hashes([0, 1])).tolist() == [-1, 1]


@given(rows=IMAGES, images=IMAGES, done=st.lists(st.booleans(), min_size=10, max_size=10), whole=st.booleans())
def test_tasks_cover_exactly_the_rows_that_are_not_committed(rows, images, done, whole):
    per_chunk, count = 4, len(rows)
    ends = np.array([min((c + 1) * 4, count) if done[c] else c * 4 for c in range(-(-count // 4))], np.int64)
    try:
        plan = make_plan(rows_of(rows), ends, count, table_of(images), whole=whole, per_chunk=per_chunk)
    except StoreError:
        lost = [r for c, end in enumerate(ends) for r in range(int(end), min(c * 4 + 4, count))]
        assert lost and (not whole or not images)
        return
    total = len(plan.rows)
    todo = {row for task in plan.tasks for row in range(task.first_row, task.end_row)}
    committed = {row for c, end in enumerate(ends) for row in range(c * 4, int(end))}
    assert todo == set(range(total)) - committed
    assert all(task.first_row // 4 == (task.end_row - 1) // 4 == task.chunk for task in plan.tasks)
    for task in plan.tasks:
        for row, image in zip(range(task.first_row, task.end_row), task.images, strict=True):
            void = not plan.rows.sha256[row].any()
            assert void or plan.rows.sha256[row, -1] == images[image]


@given(rows=IMAGES, images=IMAGES)
def test_a_whole_plan_shows_every_image_once_and_keeps_every_row_number(rows, images):
    count = len(rows)
    ends = np.array([min((c + 1) * 4, count) for c in range(-(-count // 4))], np.int64)
    plan = make_plan(rows_of(rows), ends, count, table_of(images), whole=True, per_chunk=4)
    np.testing.assert_array_equal(plan.rows.sha256[:count], hashes(rows))
    shown = plan.rows.sha256[plan.rows.present, -1].tolist()
    assert sorted(shown) == sorted(images)
    assert sorted(np.array(plan.rows.path)[plan.rows.present]) == sorted(table_of(images).path)


def test_rows_no_finished_run_has_shown_are_dropped_and_settled_ones_are_not():
    rows, table = rows_of(list(range(1, 13))), table_of([20, 21])
    ends = np.array([4], np.int64)
    dropped = make_plan(rows, ends, 0, table, whole=False, per_chunk=4)
    assert dropped.rows.sha256[:, -1].tolist() == [1, 2, 3, 4, 20, 21]
    with pytest.raises(StoreError, match=r"8 rows of an interrupted run.*without --limit first"):
        make_plan(rows, ends, 12, table, whole=False, per_chunk=4)


def test_a_row_whose_image_is_gone_before_it_was_kept_becomes_void():
    plan = make_plan(rows_of([1, 2, 3, 4]), np.zeros(0, np.int64), 4, table_of([4, 3]), whole=True, per_chunk=4)
    assert plan.rows.sha256[:, -1].tolist() == [0, 0, 3, 4]
    assert plan.rows.present.tolist() == [False, False, True, True]
    assert plan.tasks[0].images[2:].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("sha256", "label", "words"),
    [
        (np.zeros((2, 31), np.uint8), np.zeros(2, np.int64), r"\(N, 32\) uint8 for N = 2 paths; got \(2, 31\)"),
        (np.zeros((2, 32), np.uint8), np.zeros(3, np.int64), r"got \(3,\) int64"),
        (np.zeros((2, 32), np.uint8), np.zeros(2, np.int32), "got .* int32"),
        (np.zeros((2, 32), np.uint8), np.array([0, -2]), "-1 for none; got -2"),
    ],
)
def test_an_image_table_of_another_shape_says_what_it_takes(sha256, label, words):
    with pytest.raises(SettingError, match=words):
        ImageTable(sha256, label, ["a", "b"])


@pytest.mark.parametrize("seed", range(12))
def test_rows_and_images_of_equal_hashes_are_matched_in_their_turn_whatever_the_order(seed):
    random = np.random.default_rng(seed)
    rows = random.integers(0, 5, random.integers(0, 9))
    grown = [*rows, *random.integers(0, 5, random.integers(0, 4))]
    images = np.array(grown if seed % 2 else random.permutation(grown), np.int64)
    hashes = [np.repeat(numbers.astype(np.uint8)[:, None], 32, 1) for numbers in (rows, images)]
    left = {number: [image for image, other in enumerate(images) if other == number] for number in range(1, 5)}
    expected = [left[number].pop(0) if left.get(number) else -1 for number in rows]
    assert match(*hashes).tolist() == expected
