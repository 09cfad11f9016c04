"""What a run that was killed left in its store, for the tests that go on with it."""

from pathlib import Path


def recorded(store: Path) -> set[tuple[str, int]]:
    """Split and number of every chunk whose commit record is there; a record under its partial name is not."""
    return {(path.parts[-5], int(path.parts[-2])) for path in store.glob("*/commit/c/*/0")}
