"""Which cameras are on this machine, and where was looked for them."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, MissingExtra
from flawmap.images import basler, gentl

DEVICES, NAMES = Path("/dev"), Path("/sys/class/video4linux")
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
USED = "is used by a program"


def attached(devices: Path = DEVICES, names: Path = NAMES) -> dict[str, Any]:
    """`cameras`: name for the plan, device, and what stands against it; `looked`: a line for each place."""
    nodes = sorted(devices.glob("video[0-9]*"), key=lambda node: (len(node.name), node.name))
    opencv = _version(*OPENCV)
    cameras = [_uvc(node, names, opencv) for node in nodes]
    looked = [
        f"{devices}/video*: {len(nodes)} found" + ("" if devices.is_dir() else ", there is no such folder here"),
        f"OpenCV, which opens uvc:, rtsp:// and video:: {opencv or _absent('capture')}",
    ]
    for more, told in (_genicam(), _basler()):
        cameras += more
        looked += told
    return {"cameras": cameras, "looked": looked}


def _uvc(node: Path, names: Path, opencv: str) -> dict[str, str]:
    try:
        said = (names / node.name / "name").read_text(errors="replace").strip()
    except OSError:
        said = ""
    against = "" if os.access(node, os.R_OK | os.W_OK) else "may not be opened: add the user to the group video"
    if not opencv:
        against = "OpenCV is " + _absent("capture")
    return {"camera": f"uvc:{node.name.removeprefix('video')}", "device": str(node), "says": said, "but": against}


def _genicam() -> tuple[list[dict[str, str]], list[str]]:
    """Each producer is asked, and what fails on it is told."""
    version = _version("genicam")
    looked = [f"genicam, which opens genicam:: {version or _absent('capture')}"]
    folders = [folder for folder in os.environ.get(gentl.GENTL, "").split(os.pathsep) if folder]
    if not folders:
        looked.append(f"GenTL producers: {gentl.GENTL} is not set; a camera maker's installer sets it")
    for folder in map(Path, folders):
        if not list(folder.glob("*.cti")):
            looked.append(f"GenTL producers in {folder}: " + ("no .cti in it" if folder.is_dir() else "no such folder"))
    cameras = list[dict[str, str]]()
    for path in gentl.producers():
        try:
            found = gentl.asked(path)
        except (DataError, MissingExtra) as error:
            looked.append(f"GenTL producer {path}: {str(error).removeprefix(f'{path}: ')}")
            continue
        looked.append(f"GenTL producer {path}: {len(found)} found")
        cameras += [_of_producer(each, found) for each in found]
    return cameras, looked


def _of_producer(device: gentl.Device, beside: list[gentl.Device]) -> dict[str, str]:
    twice = sum(each.serial == device.serial for each in beside) > 1
    return {
        "camera": f"genicam:{device.id if twice else device.key}",
        "device": device.producer,
        "says": device.says,
        "but": USED if device.used else "",
        **{"vendor": device.vendor, "model": device.model, "serial": device.serial, "producer": device.producer},
    }


def _basler() -> tuple[list[dict[str, str]], list[str]]:
    version = _version("pypylon")
    if not version:
        return [], [f"pypylon, which opens basler:: {_absent('basler')}"]
    try:
        found = basler.devices()
    except (DataError, MissingExtra) as error:
        return [], [f"pypylon, which opens basler:: {version}, but {error}"]
    cameras = [
        {
            **{"camera": f"basler:{each.serial}", "device": each.device, "says": each.says, "but": ""},
            **{"vendor": each.vendor, "model": each.model, "serial": each.serial},
        }
        for each in found
    ]
    return cameras, [f"pypylon, which opens basler:: {version}, {len(found)} found"]


def _version(*packages: str) -> str:
    """Of the first that is installed, or nothing."""
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _absent(extra: str) -> str:
    return f'absent: pip install "flawmap[{extra}]"'
