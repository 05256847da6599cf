"""Previews of volumes: maximum projections along z, y and x, middle slices and ages, in 8 bits.

Made once per volume by whoever hands the volume on, carried in the status as base64 (about 75 kB) and
drawn by the dashboard. All images share one scale in µm per pixel, so that they fit together like
the faces of an unfolded box, and one grey scale. The functions are pure; `LatestPreviews` is guarded by its
owner.
"""

from __future__ import annotations

import base64
import math
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, model_validator

from microdiffusion.frames import AGE_UNIT
from microdiffusion.header import RunHeader

Images = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]

EDGE = 96
"""Pixels of the longest edge, at most."""

GAMMA = 0.75
"""Below 1: lifts dim structures, as the eye expects of a screen."""

_OLDEST = 8  # sweeps, drawn white

AGAIN_S = 2.0
"""Time after which a preview is sent again, for whoever has joined since."""

MOST_SESSIONS = 64
"""Sessions whose preview is kept; the one that has had none for the longest time makes room."""

Extent = Annotated[int, Field(ge=1, le=EDGE)]


class Preview(BaseModel):
    """Maximum projections of one volume, and its middle slices where they are there.

    Attributes
    ----------
    size : (z, y, x)
        Edges of the box, pixels.
    pixel_um : float
        Edge of a pixel, µm, the same in every direction.
    low, high : float
        Counts that are drawn black and white.
    xy, xz, yz : bytes
        Maximum projections: uint8 images (y, x), (z, x) and (y, z), rows first; base64 in JSON.
    xy_slice, xz_slice, yz_slice : bytes
        The middle slices, of the same shapes; empty from a daemon that sends none.
    xy_age, xz_age, yz_age : bytes
        For how long the specimen has kept still, the least along each axis, of the same shapes; empty where
        every sweep stands alone.
    sweep, served
        Its time point (-1: unknown), and which answer it is.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    size: tuple[Extent, Extent, Extent]
    pixel_um: float
    low: float
    high: float
    xy: Base64Bytes
    xz: Base64Bytes
    yz: Base64Bytes
    xy_slice: Base64Bytes = b""
    xz_slice: Base64Bytes = b""
    yz_slice: Base64Bytes = b""
    xy_age: Base64Bytes = b""
    xz_age: Base64Bytes = b""
    yz_age: Base64Bytes = b""
    sweep: int = -1
    served: str = ""

    @model_validator(mode="after")
    def _images_match_the_size(self) -> Self:
        z, y, x = self.size
        for name, pixels in (("xy", y * x), ("xz", z * x), ("yz", y * z)):
            image = getattr(self, name)
            if len(image) != pixels:
                raise ValueError(f"the {name} image should hold {pixels} bytes, not {len(image)}")
            for kind in ("slice", "age"):
                part = getattr(self, f"{name}_{kind}")
                if len(part) not in (0, pixels):
                    raise ValueError(f"the {name} {kind} should hold {pixels} bytes, not {len(part)}")
        return self

    @property
    def images(self) -> Images:
        """Maximum projections XY (y, x), XZ (z, x) and YZ (y, z), uint8, read-only."""
        return self._shaped(self.xy, self.xz, self.yz)

    @property
    def slices(self) -> Images | None:
        """The middle slices, of the same shapes; None where there are none."""
        return self._shaped(self.xy_slice, self.xz_slice, self.yz_slice) if self.xy_slice else None

    @property
    def ages(self) -> Images | None:
        """Images of how long the specimen has kept still, black: new; None where nobody knows."""
        return self._shaped(self.xy_age, self.xz_age, self.yz_age) if self.xy_age else None

    def _shaped(self, xy: bytes, xz: bytes, yz: bytes) -> Images:
        z, y, x = self.size
        return (
            np.frombuffer(xy, np.uint8).reshape(y, x),
            np.frombuffer(xz, np.uint8).reshape(z, x),
            np.frombuffer(yz, np.uint8).reshape(y, z),
        )


def make_preview(
    volume: NDArray[Any],
    voxel_size_um: tuple[float, float, float],
    *,
    sweep: int = -1,
    served: str = "",
    age: NDArray[np.uint8] | None = None,
) -> Preview:
    """Return the preview of `volume`.

    Parameters
    ----------
    volume : (Z, Y, X) float32 or uint16
        Values that are not finite count as dark.
    voxel_size_um : (z, y, x)
        µm.
    sweep, served
        Its time point, and which answer it is.
    age : (z, y, x) uint8, optional
        Of blocks of the volume, in `AGE_UNIT`.
    """
    extent_um = [count * edge for count, edge in zip(volume.shape, voxel_size_um, strict=True)]
    # Never finer than the voxels: enlarging is the terminal's business.
    pixel_um = max(max(extent_um) / EDGE, min(voxel_size_um))
    z, y, x = (min(EDGE, max(1, round(extent / pixel_um))) for extent in extent_um)
    middle = [volume.take(length // 2, axis=axis) for axis, length in enumerate(volume.shape)]
    whole = [volume.max(axis=axis) for axis in range(3)]
    small = [
        np.nan_to_num(resize_max(np.asarray(image, np.float32), shape), posinf=0.0, neginf=0.0)
        for xy, xz, zy in (whole, middle)
        for image, shape in ((xy, (y, x)), (xz, (z, x)), (zy.T, (y, z)))
    ]
    values = np.concatenate([image.ravel() for image in small[:3]])
    # The background's level to black; the brightest spots may saturate, they would hide the rest.
    low, high = (float(value) for value in np.percentile(values, (20.0, 99.7)))
    span = max(high - low, 1e-6)
    encoded = [
        base64.b64encode(
            (255.0 * np.clip((image - low) / span, 0.0, 1.0) ** GAMMA).astype(np.uint8).tobytes()
        )
        for image in small
    ]
    if age is not None:
        # The least along an axis: what changed must not hide behind what kept still.
        xy, xz, zy = (255.0 * np.minimum(age.min(axis=axis) * AGE_UNIT / _OLDEST, 1.0) for axis in range(3))
        encoded += [
            base64.b64encode(resize_max(image, shape).astype(np.uint8).tobytes())
            for image, shape in ((xy, (y, x)), (xz, (z, x)), (zy.T, (y, z)))
        ]
    names = [f"{view}{kind}" for kind in ("", "_slice", "_age") for view in ("xy", "xz", "yz")]
    return Preview(
        size=(z, y, x),
        pixel_um=pixel_um,
        low=low,
        high=high,
        sweep=sweep,
        served=served,
        **dict(zip(names, encoded, strict=False)),
    )


def resize_max(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return `image` (H, W) at `shape`: the maximum of what falls into a pixel, or the nearest one.

    The maximum, because a dendrite one pixel wide must survive being shrunk.
    """
    for axis, size in enumerate(shape):
        length = image.shape[axis]
        starts = np.arange(size) * length // size
        if size <= length:
            image = np.maximum.reduceat(image, starts, axis=axis)
        else:
            image = np.take(image, starts, axis=axis)
    return image


class LatestPreviews:
    """The newest preview of every session, and which of them is sent next.

    A preview is ten times as large as all figures together, so a snapshot carries one at most: a new one
    first, the one that waits longest before the others.
    """

    def __init__(self) -> None:
        self._previews: dict[str, Preview] = {}
        self._sent_s: dict[str, float] = {}
        self._new: set[str] = set()

    @property
    def sessions(self) -> tuple[str, ...]:
        """Names of the sessions that have one, sorted."""
        return tuple(sorted(self._previews))

    def put(self, session: str, preview: Preview | None) -> None:
        """Set a session's newest preview; None removes it."""
        self._previews.pop(session, None)
        self._new.discard(session)
        if preview is None:
            self._sent_s.pop(session, None)
            return
        if session not in self._sent_s and len(self._previews) >= MOST_SESSIONS:
            self.put(next(iter(self._previews)), None)
        self._previews[session] = preview
        self._sent_s.setdefault(session, -math.inf)
        self._new.add(session)

    def next(self, now_s: float) -> tuple[str, Preview | None]:
        """Return the session whose preview is due, and it; ("", None) where none is."""
        if not self._previews:
            return "", None
        name = min(self._previews, key=self._urgency)
        if name not in self._new and now_s - self._sent_s[name] < AGAIN_S:
            return "", None
        self._new.discard(name)
        self._sent_s[name] = now_s
        return name, self._previews[name]

    def _urgency(self, session: str) -> tuple[bool, float, str]:
        return session not in self._new, self._sent_s[session], session


def session_name(header: RunHeader, channel: int, position: int) -> str:
    """Return the name of a session: the run's, with channel and position where there are several."""
    parts = [header.name]
    if len(header.channels) > 1:
        parts.append(header.channels[channel])
    if len(header.positions) > 1:
        parts.append(f"position {header.positions[position]}")
    return " · ".join(parts)
