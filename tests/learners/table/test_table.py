"""EmbeddingTable against a dictionary of rows, and what its layout must not show."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.table.state import TableCopy
from learners.table.table import EmbeddingTable, TableConfig
from tests.learners.table_reference import ReferenceTable, assert_same, start_vector

DEFAULTS = [1001, 1002, 1003]
EPOCH_MS = 1000
RATES, BETAS = (0.1, 0.2), (1e-3, 0.5)

configs = st.builds(
    TableConfig,
    admit_after=st.integers(1, 3),
    expire_after_s=st.sampled_from([None, 64.0]),
    max_rows=st.sampled_from([None, 1, 7, 40]),
    accumulator_half_life_s=st.sampled_from([None, 7.0]),
    seed=st.integers(0, 5),
    start_from_default=st.booleans(),
    sketch_bytes=st.just(1 << 16),
)
# A step: (what, a seed for its keys and gradients, epochs that pass before it)
steps = st.lists(
    st.tuples(st.sampled_from(["learn", "learn", "look", "take", "restore", "snapshot"]), st.integers(0, 99),
              st.sampled_from([0, 0, 1, 20, 65, 66])),
    max_size=25,
)  # fmt: skip


def table(config: TableConfig, dim: int = 5) -> EmbeddingTable:
    """A fresh table of three columns."""
    return EmbeddingTable(dim, DEFAULTS, config)


def batch(seed: int, rows: int = 6, keys: int = 60) -> NDArray[np.uint64]:
    """Keys with duplicates, missing ones and now and then a default key."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, keys, (rows, 3)).astype(np.uint64)
    drawn[generator.random(drawn.shape) < 0.02] = DEFAULTS[0]
    return drawn


def gradients(seed: int, rows: int, dim: int) -> NDArray[np.float32]:
    """Normal gradients of rows."""
    return np.random.default_rng(seed).standard_normal((rows, dim + 1)).astype(np.float32)


def learn(t: EmbeddingTable, keys: NDArray[np.uint64], seed: int) -> None:
    """Admit and update."""
    rows = t.admit(keys).unique
    t.update(rows, gradients(seed, len(rows), t.dim), rates=RATES, betas=BETAS)


def assert_equal(left: dict[str, NDArray[Any]], right: dict[str, NDArray[Any]]) -> None:
    """The same arrays, bit for bit."""
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].tobytes() == right[name].tobytes(), name


def sha256(t: EmbeddingTable) -> str:
    """Hash of the whole state."""
    state = t.state()
    return hashlib.sha256(b"".join(state[name].tobytes() for name in sorted(state))).hexdigest()


def keys_of(t: EmbeddingTable, rows: NDArray[np.int32]) -> list[int]:
    """The keys of rows, 0 for row 0: by their values' place in the state is not unique, so by the table's heads."""
    return [int(key) for key in t.keys_of(rows)]


class Both:
    """The table and the reference, led through the same history."""

    def __init__(self, config: TableConfig, dim: int) -> None:
        self.config, self.dim = config, dim
        self.table, self.reference = table(config, dim), ReferenceTable(dim, DEFAULTS, config)
        self.copy: TableCopy | None = None
        self.copied: dict[str, NDArray[Any]] = {}

    def advance(self, epoch: int) -> None:
        """Move time on, and a running snapshot by a few rows."""
        self.table.advance(epoch * self.config.epoch_ms)
        self.reference.advance(epoch * self.config.epoch_ms)
        if self.copy is not None:
            self.copy.step(300)

    def learn(self, seed: int) -> None:
        """Admit a batch and update its rows."""
        keys = batch(seed)
        lookup, named = self.table.admit(keys), self.reference.admit(keys)
        shown = [[0 if u < 0 else keys_of(self.table, lookup.unique[[u]])[0] for u in line] for line in lookup.inverse]
        assert shown == named
        met = list(dict.fromkeys(key for line in named for key in line if key))
        assert keys_of(self.table, lookup.unique) == met
        drawn = gradients(seed, len(met), self.dim)
        self.table.update(lookup.unique, drawn, rates=RATES, betas=BETAS)
        for key, gradient in zip(met, drawn, strict=True):
            self.reference.update(key, gradient, RATES, BETAS)

    def look(self, seed: int) -> None:
        """Find a batch."""
        keys = batch(seed)
        assert [keys_of(self.table, rows) for rows in self.table.find(keys)] == self.reference.find(keys)

    def take(self, _seed: int) -> None:
        """Take what changed."""
        changed, (keys, values, removed) = self.table.take_changed(), self.reference.take_changed()
        assert changed.keys.tolist() == keys
        assert changed.values.tobytes() == np.array(values, np.float32).tobytes()
        assert changed.removed.tolist() == removed

    def restore(self, _seed: int) -> None:
        """Go on with a table restored from the state."""
        if self.copy is None:
            restored = table(self.config, self.dim)
            restored.restore(self.table.state())
            self.table = restored

    def snapshot(self, _seed: int) -> None:
        """Begin a snapshot, once; its state must be this moment's."""
        if self.copy is None:
            self.copied = self.table.state()
            self.copy = self.table.begin_snapshot()

    def finish(self) -> None:
        """Compare the finished snapshot with its beginning, and the table with the reference."""
        if self.copy is not None:
            while not self.copy.step(300):
                pass
            self.table.end_snapshot()
            assert_equal(self.copy.state(), self.copied)
        assert_same(self.table, self.reference)


@settings(deadline=None, max_examples=150)
@given(configs, steps, st.sampled_from([1, 4, 5]))
def test_the_table_does_what_a_dictionary_of_rows_does(
    config: TableConfig, history: list[tuple[str, int, int]], dim: int
) -> None:
    """Admission, expiry, eviction, updates, changed keys, tombstones and snapshots are bit-equal in any history."""
    both, epoch = Both(config, dim), 0
    for what, seed, passed in history:
        epoch += passed
        both.advance(epoch)
        getattr(both, what)(seed)
    both.finish()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([1, 2]))
def test_layout_is_not_observable(seed: int, admit_after: int) -> None:
    """A table that grew, lost and reused rows equals one restored half-way from its state, in state, hash and rows."""
    config = TableConfig(admit_after=admit_after, expire_after_s=64.0, seed=seed, sketch_bytes=1 << 18)
    grown = table(config)
    for step in range(30):
        grown.advance(step * 10 * EPOCH_MS)
        learn(grown, batch(seed + step, 200, 4000), seed)
    restored = table(config)
    restored.restore(grown.state())
    for step in range(30, 45):
        for t in (grown, restored):
            t.advance(step * 10 * EPOCH_MS)
            learn(t, batch(seed + step, 200, 4000), seed)
    assert sha256(grown) == sha256(restored)
    keys = batch(seed, 200, 4000)
    assert keys_of(grown, grown.find(keys).reshape(-1)) == keys_of(restored, restored.find(keys).reshape(-1))


def test_keys_in_any_order_make_the_same_rows() -> None:
    """Start values depend on seed and key alone."""
    config, keys = TableConfig(seed=4), np.arange(1, 3001, dtype=np.uint64).reshape(-1, 3)
    up, down = table(config), table(config)
    up.admit(keys)
    for row in keys[::-1]:
        down.admit(row[None, :])
    assert up.state()["values"].tobytes() == down.state()["values"].tobytes()
    assert up.gather(up.find(keys[:1])[0, :1])[0, :5].tobytes() == start_vector(4, 1, 5, 0.01).tobytes()


def test_start_values_are_normal_to_the_fourth_moment() -> None:
    """Mean, deviation and kurtosis of a hundred thousand numbers are those of the sum of four uniform ones."""
    t = EmbeddingTable(16, DEFAULTS, TableConfig(init_scale=0.5))
    t.admit(np.arange(1, 6001, dtype=np.uint64).reshape(-1, 3))
    values = t.gather(np.arange(4, 6004, dtype=np.int32))[:, :16].astype(np.float64) / 0.5
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 2.7) < 0.05


def test_the_index_finds_every_key_while_it_grows() -> None:
    """From nothing to two hundred thousand keys, in uneven batches, all keys admitted so far are found."""
    t, generator, known = table(TableConfig(), 1), np.random.default_rng(0), np.empty((0, 3), np.uint64)
    while len(known) < 70_000:
        keys = generator.integers(1, 1 << 63, (int(generator.integers(1, 9000)), 3)).astype(np.uint64)
        t.admit(keys)
        known = np.concatenate((known, keys))
        assert np.array_equal(t.keys_of(t.find(known).reshape(-1)), known.reshape(-1))
    assert len(t) == known.size + 3


def test_the_sketch_admits_few_strangers() -> None:
    """After any number of keys sighted once, fewer are admitted falsely than the stated bound."""
    t = EmbeddingTable(1, [1], TableConfig(admit_after=2, sketch_bytes=1 << 16))
    keys = np.random.default_rng(1).integers(1, 1 << 63, (200_000, 1)).astype(np.uint64)
    t.admit(keys)
    assert len(t) - 1 < 0.024 * len(keys)
    assert t.waiting <= 2 * (1 << 15) // 16


def test_the_sketch_loses_no_sighting_within_a_generation() -> None:
    """However many keys came before, one that is sighted twice in a row of batches is admitted at the second."""
    t = EmbeddingTable(1, [1], TableConfig(admit_after=2, sketch_bytes=1 << 14))
    keys = np.arange(2, 50_002, dtype=np.uint64).reshape(-1, 100, 1)
    for batch_keys in keys:
        t.admit(batch_keys)
        t.admit(batch_keys)
        assert np.array_equal(t.keys_of(t.find(batch_keys)[:, 0]), batch_keys[:, 0])


def test_serving_that_applies_what_changed_holds_the_same_rows() -> None:
    """Assign and remove of every take_changed keep a reader's keys and values equal to the learner's."""
    config = TableConfig(expire_after_s=64.0)
    learner, reader = table(config), table(config)
    for step in range(40):
        learner.advance(step * 15 * EPOCH_MS)
        learn(learner, batch(step, 30, 400), step)
        changed = learner.take_changed()
        reader.remove(changed.removed)
        reader.assign(changed.keys, changed.values)
        state, seen = learner.state(), reader.state()
        assert np.array_equal(state["keys"], seen["keys"])
        assert state["values"].tobytes() == seen["values"].tobytes()
    assert len(reader.take_changed().keys) == 0


def test_gathered_rows_are_an_aligned_copy() -> None:
    """Changing what gather returned changes nothing in the table."""
    t = table(TableConfig())
    rows = t.admit(np.array([[5, 6, 7]], np.uint64)).unique
    gathered = t.gather(rows)
    assert gathered.ctypes.data % 64 == 0
    gathered[...] = 9
    assert not (t.gather(rows) == 9).any()


def test_a_state_does_not_alias_the_table() -> None:
    """Learning on leaves an earlier state as it was, and restoring from it leaves it too."""
    t = table(TableConfig(admit_after=2, sketch_bytes=1 << 12))
    learn(t, batch(1), 1)
    state = t.state()
    kept = {name: array.copy() for name, array in state.items()}
    other = table(t.config)
    other.restore(state)
    for seed in range(5):
        learn(t, batch(seed), seed)
        learn(other, batch(seed), seed)
    assert_equal(state, kept)


def test_missing_keys_learn_nothing() -> None:
    """Key 0 is row 0, zeros before and after an update that names it."""
    t = table(TableConfig())
    assert not t.find(np.zeros((2, 3), np.uint64)).any()
    assert len(t.admit(np.zeros((2, 3), np.uint64)).unique) == 0
    t.update(np.zeros(1, np.int32), np.ones((1, 6), np.float32), rates=RATES, betas=BETAS)
    assert not t.gather(np.zeros(1, np.int32)).any()
    assert len(t.take_changed().keys) == 0


def test_a_second_snapshot_waits_for_the_first() -> None:
    """Beginning twice is an error that says how to go on; an unfinished copy gives no state."""
    t = table(TableConfig())
    copy = t.begin_snapshot()
    with pytest.raises(RuntimeError, match=r"one at a time.*end_snapshot"):
        t.begin_snapshot()
    with pytest.raises(RuntimeError, match=r"0 of 4 rows are copied.*Call step"):
        copy.state()
    t.end_snapshot()
    t.begin_snapshot()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"admit_after": 0}, r"admit_after=0 must be 1\.\.255"),
        ({"admit_after": 256}, r"admit_after=256 must be 1\.\.255"),
        ({"expire_after_s": 3.0}, r"expire_after_s=3\.0 must be at least 64"),
        ({"expire_after_s": float("nan")}, r"expire_after_s=nan"),
        ({"max_rows": 0}, r"max_rows=0 must be 1\.\.\d+, or None"),
        ({"accumulator_half_life_s": 0.0}, r"accumulator_half_life_s=0.0 must be positive"),
        ({"init_scale": float("inf")}, r"init_scale=inf must be finite"),
        ({"seed": -1}, r"seed=-1 must be"),
        ({"sketch_bytes": 100}, r"sketch_bytes=100 must be a power of two.*Take 128"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    """The message names the value, its bound and a remedy."""
    with pytest.raises(ValueError, match=message):
        TableConfig(**settings)


@pytest.mark.parametrize("keys", [[], [0, 1], [5, 5]])
def test_default_keys_must_be_different_and_present(keys: list[int]) -> None:
    """No columns, key 0 or one key twice is refused."""
    with pytest.raises(ValueError, match="default keys"):
        EmbeddingTable(4, keys, TableConfig())


def test_wrong_arguments_are_refused_and_leave_the_table_alone() -> None:
    """Keys of another width or type, gradients of another shape, key 0 assigned, a time beyond all clocks."""
    t = table(TableConfig())
    learn(t, batch(1), 1)
    before = t.state()
    with pytest.raises(ValueError, match=r"keys \(2, 2\) of uint64 must be \(rows, 3\)"):
        t.admit(np.ones((2, 2), np.uint64))
    with pytest.raises(ValueError, match=r"of int64 must be"):
        t.find(np.ones((2, 3), np.int64))
    with pytest.raises(ValueError, match=r"gradients \(1, 4\) must be \(1, 6\)"):
        t.update(np.ones(1, np.int32), np.ones((1, 4), np.float32), rates=RATES, betas=BETAS)
    with pytest.raises(ValueError, match="key 0"):
        t.assign(np.zeros(1, np.uint64), np.ones((1, 6), np.float32))
    for event_ms in (-1, 1 << 62):
        with pytest.raises(ValueError, match=rf"event time {event_ms} ms must lie"):
            t.advance(event_ms)
    assert_equal(t.state(), before)


def test_a_state_of_another_table_is_refused() -> None:
    """Another dim, other columns, another sketch or a lacking array: an error, and the table as it was."""
    source = table(TableConfig(admit_after=2, sketch_bytes=1 << 12))
    learn(source, batch(1), 1)
    state = source.state()
    for other, message in (
        (EmbeddingTable(4, DEFAULTS, source.config), r"values \(\d+, 6\) does not fit a table of 4 \+ 1"),
        (EmbeddingTable(5, [7, 8, 9], source.config), r"lacks some of the default keys"),
        (table(TableConfig(admit_after=2, sketch_bytes=1 << 13)), r"sketch of \(2, 2048\)"),
    ):
        before = other.state()
        with pytest.raises(ValueError, match=message):
            other.restore(state)
        assert_equal(other.state(), before)
    del state["seen"]
    with pytest.raises(ValueError, match=r"without \['seen'\]"):
        source.restore(state)


def test_a_snapshot_holds_the_state_of_its_beginning() -> None:
    """Whatever is learned, admitted and expired while it is copied, and after another one."""
    t = table(TableConfig(admit_after=2, expire_after_s=64.0, sketch_bytes=1 << 12))
    t.load_snapshot_kernels()
    for step, keys in enumerate((50, 400, 3000, 500)):
        t.advance(40 * step * EPOCH_MS)
        for seed in range(4):
            learn(t, batch(seed, 200, keys), seed)
        expected, copy = t.state(), t.begin_snapshot()
        while not copy.step(1000):
            learn(t, batch(step, 20, keys), step)
        t.end_snapshot()
        assert_equal(copy.state(), expected)


def test_memory_is_told_by_what_it_is_for() -> None:
    """Twelve bytes and an index slot at a load of a half or more for each key."""
    t = table(TableConfig())
    t.admit(np.arange(1, 30_001, dtype=np.uint64).reshape(-1, 3))
    memory = t.memory()
    assert memory.keys == 12 * (len(t) + 1)
    assert memory.last_seen == 4 * (len(t) + 1)
    assert memory.numbers == 4 * (5 + 3) * (len(t) + 1)
    assert 8 / 0.81 * len(t) <= memory.index <= 16 * len(t)
    assert t.memory_bytes() == t.memory().total


def test_a_row_that_was_free_is_in_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row taken while a copy is made is not of its moment, whatever was in the copy's memory before."""

    def used(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        return np.full((*shape, np.dtype(dtype).itemsize), 255, np.uint8).view(dtype)[..., 0]

    table = EmbeddingTable(2, np.array([1 << 40], np.uint64), TableConfig(expire_after_s=64.0))
    table.advance(1_700_000_000_000)
    table.admit(np.arange(1, 200, dtype=np.uint64)[:, None])
    for second in range(0, 400, 40):
        table.advance(1_700_000_000_000 + second * 1000)
    monkeypatch.setattr("learners.table.state.reserved", used)
    copy = table.begin_snapshot()
    table.admit(np.arange(1000, 1150, dtype=np.uint64)[:, None])
    while not copy.step(1 << 20):
        pass
    assert copy.state()["keys"].tolist() == [1 << 40]
