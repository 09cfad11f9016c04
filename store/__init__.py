"""The embedding store: one token of every image, cached in a Zarr group; numpy and zarr only.

``open_store(path)["train"]`` is a split; its ``embedding()``, ``label()`` and ``row_id()`` agree row by row.
"""

from cspipe.store.reader import Split, Store, open_store

__all__ = ["Split", "Store", "open_store"]
