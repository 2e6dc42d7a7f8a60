"""Which cameras are on this machine, and where was looked for them."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

DEVICES, NAMES = Path("/dev"), Path("/sys/class/video4linux")
GENTL = "GENICAM_GENTL64_PATH"  # folders of GenTL producers, by the GenICam standard


def attached(devices: Path = DEVICES, names: Path = NAMES) -> dict[str, Any]:
    """`cameras`: name for the plan, device, and what stands against it; `looked`: a line for each place."""
    nodes = sorted(devices.glob("video[0-9]*"), key=lambda node: (len(node.name), node.name))
    opencv = _opencv()
    cameras = [_camera(node, names, opencv) for node in nodes]
    looked = [
        f"{devices}/video*: {len(nodes)} found" + ("" if devices.is_dir() else ", there is no such folder here"),
        f"OpenCV, which opens uvc:, rtsp:// and video:: {opencv}"
        if opencv
        else 'OpenCV, which opens uvc:, rtsp:// and video:: absent: pip install "flawmap[capture]"',
        *_producers(),
    ]
    return {"cameras": cameras, "looked": looked}


def _camera(node: Path, names: Path, opencv: str) -> dict[str, str]:
    try:
        said = (names / node.name / "name").read_text(errors="replace").strip()
    except OSError:
        said = ""
    against = "" if os.access(node, os.R_OK | os.W_OK) else "may not be opened: add the user to the group video"
    if not opencv:
        against = 'OpenCV is absent: pip install "flawmap[capture]"'
    return {"camera": f"uvc:{node.name.removeprefix('video')}", "device": str(node), "says": said, "but": against}


def _opencv() -> str:
    """Its version, or nothing."""
    for package in (
        "opencv-python-headless",
        "opencv-python",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _producers() -> list[str]:
    """GenTL producers are told, so that nobody looks further; flawmap opens none of them."""
    folders = [folder for folder in os.environ.get(GENTL, "").split(os.pathsep) if folder]
    if not folders:
        return [f"GenTL producers: {GENTL} is not set"]
    told = []
    for folder in folders:
        found = sorted(path.name for path in Path(folder).glob("*.cti"))
        listed = f"{', '.join(found)}; flawmap opens no GenTL camera" if found else "no .cti in it"
        told.append(f"GenTL producers in {folder}: {listed}")
    return told
