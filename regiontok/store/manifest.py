"""``store.json``: what a store holds, how that was made, and which images its keys are of."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from regiontok.errors import StoreError, ValueRangeError
from regiontok.store.places import Place, TakenError

NAME = "store.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What every row of a store has in common.

    Attributes:
        kind: ``masks`` or ``tokens``.
        made_by: How the rows were made, as plain values.
        images: The folders that keys are below, each with its ``name`` and an ``id`` of where it lay.
    """

    kind: str
    made_by: dict[str, Any] = field(default_factory=dict)
    images: list[dict[str, str]] = field(default_factory=list)

    def write(self, place: Place) -> None:
        """Write ``store.json``, unless another writer has."""
        told: dict[str, Any] = {"format": FORMAT, "kind": self.kind, "regiontok": version("regiontok")}
        told |= {"made_by": self.made_by, "images": self.images}
        try:
            text = json.dumps(told, indent=2) + "\n"
        except TypeError as error:
            raise ValueRangeError(f"made_by must be plain values, as JSON holds them: {error}.") from error
        with suppress(TakenError):
            place.write(NAME, text.encode())

    def difference(self, other: "Manifest") -> list[str]:
        """In what options another differs, as lines ``name: its value here, the other's there``."""
        mine, others = _flat(self.made_by), _flat(other.made_by)
        return [
            f"{name}: {_shown(mine.get(name))} in the store, {_shown(others.get(name))} now"
            for name in sorted(mine.keys() | others.keys())
            if mine.get(name) != others.get(name)
        ]

    def check_more(self, other: "Manifest", address: str, *, mixed: bool) -> None:
        """Refuse rows of another kind, or made in another way unless ``mixed``.

        Raises:
            ValueRangeError: Such rows; the differences are named.
        """
        if other.kind != self.kind:
            raise ValueRangeError(
                f"{address} is a store of {self.kind}, and these are {other.kind}. Name another folder."
            )
        found = self.difference(other)
        if found and not mixed:
            raise ValueRangeError(
                f"{address} was made by other options:\n  " + "\n  ".join(found) + "\nName another folder, make it "
                "anew with --overwrite, or add to it all the same with --mixed."
            )


def read_manifest(place: Place) -> Manifest | None:
    """The manifest of a store; None where there is none.

    Raises:
        StoreError: It is damaged, or of a later version.
    """
    try:
        data = place.read(NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{place.address}/{NAME} cannot be read ({error}).") from error
    try:
        told = json.loads(data)
        if told["format"] != FORMAT:
            raise StoreError(
                f"{place.address} is a store of format {told['format']}; this version of regiontok reads {FORMAT}."
            )
        kind, made_by, images = told["kind"], told["made_by"], told["images"]
        if not (
            isinstance(kind, str)
            and isinstance(made_by, dict)
            and all(isinstance(one[name], str) for one in images for name in ("id", "name"))
        ):
            raise TypeError("kind, made_by or images are of another type")
        return Manifest(kind=kind, made_by=made_by, images=images)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"{place.address}/{NAME} is damaged: {error!r}. Put it right, or make the store anew with --overwrite."
        ) from error


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested options by dotted names, as JSON gives them back."""
    flat: dict[str, Any] = {}
    for name, one in value.items():
        if isinstance(one, Mapping) and one:
            flat |= _flat(one, f"{before}{name}.")
        else:
            flat[before + str(name)] = json.loads(json.dumps(one))
    return flat


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
