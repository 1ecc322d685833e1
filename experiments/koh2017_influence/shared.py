"""What the scripts of this folder share: the command line, a clock, circumstances, drawing."""

import argparse
import json
import os
import re
import sys
import time
from base64 import b64encode
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vl_convert
from PIL import Image

import whence

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BLUE, RED, GREEN, GREY = "#2b6cb0", "#c53030", "#2f855a", "#999999"


def parse(words: str) -> argparse.Namespace:
    """The command line; `words` is the docstring of the script."""
    parser = argparse.ArgumentParser(description=words.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds on a part of the data")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    return parser.parse_args()


class Clock:
    """Seconds of each part of the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The part that ends now."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self.last, 2)
        self.last = now
        print(f"{self.seconds[name]:8.1f} s  {name}", flush=True)


def circumstances(script: str, seconds: dict[str, float]) -> dict[str, Any]:
    """Versions, threads, command and seconds."""
    packages = ("torch", "numpy", "scipy", "scikit-learn")
    path = Path(script).resolve().relative_to(ROOT)
    return {
        "command": " ".join(["python", str(path), *sys.argv[1:]]),
        "versions": {"whence": whence.__version__} | {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seconds": seconds,
    }


def write(out: Path, name: str, result: dict[str, Any], drawing: str) -> None:
    """`name`.json and `name`.svg."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / f"{name}.svg").write_text(drawing)


def pooled(images: np.ndarray, side: int) -> np.ndarray:
    """Flat float64 MNIST images of side x side, each pixel the mean of a block."""
    block = 28 // side
    blocks = images.astype(np.float64).reshape(-1, side, block, side, block)
    return blocks.mean(axis=(2, 4)).reshape(len(images), -1)


def rounded(values: Any, digits: int = 6) -> Any:
    """Numbers, or lists and dicts of them, with as many digits as a check needs."""
    if isinstance(values, dict):
        return {name: rounded(value, digits) for name, value in values.items()}
    if isinstance(values, list | tuple | np.ndarray):
        return [rounded(value, digits) for value in values]
    if isinstance(values, float | np.floating):
        return float(f"{values:.{digits}g}")
    return values.item() if isinstance(values, np.generic) else values


def svg(spec: dict[str, Any]) -> str:
    """A Vega-Lite chart as SVG, on white, its coordinates short."""
    config = {
        "background": "white",
        "font": "sans-serif",
        "view": {"stroke": None},
        "axis": {"gridColor": "#eeeeee", "domain": False, "tickCount": 5, "titleFontSize": 12},
        "aria": False,  # a label for each of thousands of points would double the file
    }
    drawn = vl_convert.vegalite_to_svg({"config": config, **spec}, allowed_base_urls=[])
    places = r'(?: d|transform)="[^"]+"'  # coordinates, and not the numbers beside the axes
    return re.sub(places, lambda found: _shortened(found[0]), drawn) + "\n"


def _shortened(coordinates: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", coordinates)


def axis(field: str, title: str, **scale: Any) -> dict[str, Any]:
    """A quantitative channel of a chart."""
    return {"field": field, "type": "quantitative", "title": title, "scale": scale}


def picture(pixels: np.ndarray) -> str:
    """A grey picture with values in [0, 1] as a data address."""
    image = Image.fromarray(np.rint(255 * pixels).astype(np.uint8))
    image = image.resize((112, 112), Image.Resampling.NEAREST)
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
