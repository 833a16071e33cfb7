"""``_store.json``: the kind of a store, the provenance of its rows, and the image folders of its keys."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from regiontok.errors import StoreError, ValueRangeError
from regiontok.store.storage import FileTakenError, Storage

MANIFEST_NAME = "_store.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Properties that all rows of a store share.

    Attributes:
        kind: ``masks`` or ``tokens``.
        provenance: How the rows were made, as JSON values.
        images: The folders that keys are relative to, each with its ``name`` and an ``id`` of its location.
    """

    kind: str
    provenance: dict[str, Any] = field(default_factory=dict)
    images: list[dict[str, str]] = field(default_factory=list)

    def write(self, storage: Storage, *, writer: int = 0) -> None:
        """Write ``_store.json`` unless another writer has already written it.

        Raises:
            ValueRangeError: The provenance cannot be stored as JSON.
            OutputError: The file cannot be written.
        """
        content: dict[str, Any] = {"format": FORMAT, "kind": self.kind, "regiontok": version("regiontok")}
        content |= {"provenance": self.provenance, "images": self.images}
        try:
            text = json.dumps(content, indent=2) + "\n"
        except TypeError as error:
            raise ValueRangeError(f"provenance must be JSON values: {error}.") from error
        with suppress(FileTakenError):
            storage.write(MANIFEST_NAME, text.encode(), writer=writer)

    def difference(self, other: "Manifest") -> list[str]:
        """Return a line for each option that differs: ``name: value in the store, value of the other now``."""
        mine, theirs = _flatten(self.provenance), _flatten(other.provenance)
        return [
            f"{name}: {_format(mine.get(name))} in the store, {_format(theirs.get(name))} now"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]

    def check_compatible(self, other: "Manifest", address: str, *, mixed: bool) -> None:
        """Check that rows with another manifest can be added to this store.

        Args:
            other: The manifest of the new rows.
            address: The store, for the message.
            mixed: Allow rows of other provenance.

        Raises:
            StoreError: The rows have another kind or provenance; the message lists the differences.
        """
        if other.kind != self.kind:
            raise StoreError(f"{address} is a store of {self.kind}, but the new rows are {other.kind}. Name another.")
        differences = self.difference(other)
        if differences and not mixed:
            raise StoreError(
                f"{address} was written with other options:\n  " + "\n  ".join(differences) + "\nName another store, "
                "replace this one with --overwrite, or add the rows anyway with --mixed."
            )


def read_manifest(storage: Storage) -> Manifest | None:
    """Return the manifest of a store, or None if there is no store.

    Raises:
        StoreError: The manifest is damaged, cannot be read, or has another format.
    """
    try:
        data = storage.read(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            raise StoreError(
                f"{storage.address} is a store of format {content['format']}; this version of regiontok reads {FORMAT}."
            )
        kind, provenance, images = content["kind"], content["provenance"], content["images"]
        if not (
            isinstance(kind, str)
            and isinstance(provenance, dict)
            and all(isinstance(folder[name], str) for folder in images for name in ("id", "name"))
        ):
            raise TypeError("kind, provenance or images have the wrong type")
        return Manifest(kind=kind, provenance=provenance, images=images)
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{storage.address}/{MANIFEST_NAME} is damaged: {error!r}. Repair it, or replace the store with "
            "--overwrite."
        ) from error


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by dotted names, with the values that JSON restores."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + str(name)] = json.loads(json.dumps(value))
    return flat


def _format(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
