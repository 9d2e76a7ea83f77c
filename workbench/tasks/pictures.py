"""From whatever a user calls an image to eight-bit RGB: files, Pillow images of any mode, arrays.

Image processors differ in what they do with transparency, palettes, 16-bit greys and rotated photographs; here each is
settled once, so that two models see the same picture and a digest means the same pixels. A file that is missing or
broken is refused in one sentence. It knows nothing of prompts, processors or models.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 100_000_000  # a larger file is a mistake, or meant to fill the memory
_LONGEST = 200  # a processor that scales the shorter side to 336 would make 336 x 67,200 of this
_LEAST_SIDE = 4  # with a side of 1 or 3 a processor may take rows for colour channels


def open_picture(source: Any, *, base_dir: str | Path | None = None, where: str = "The image") -> Image:
    """An upright RGB picture.

    Args:
        source: a path (relative to `base_dir` when given), a Pillow image of any mode, or an array of uint8
            `[height, width]` or `[height, width, 3 or 4]`. Transparent parts become white; of an animation the first
            frame is taken; 16-bit and floating greys are scaled to 0..255.
        where: what to call it in a message.

    Raises:
        InputError: there is no such file, it is no image, it is broken, or its shape cannot be used.
    """
    from PIL import Image

    if isinstance(source, str | os.PathLike):
        return _from_file(locate(source, base_dir), where)
    if isinstance(source, Image.Image):
        return _upright_rgb(source, where)
    if getattr(source, "dtype", None) is not None and hasattr(source, "__array__"):
        import numpy as np

        array = np.asarray(source)
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
            raise InputError(
                f"{where} is an array of {array.dtype} and shape {list(array.shape)}; give uint8 of shape "
                "[height, width] or [height, width, 3 or 4]."
            )
        return _upright_rgb(Image.fromarray(array), where)
    raise InputError(f"{where} is a {type(source).__name__}; give a path, a Pillow image or a uint8 array.")


def locate(source: str | os.PathLike[str], base_dir: str | Path | None) -> Path:
    """The path, relative to `base_dir` when it is relative and one is given."""
    path = Path(source).expanduser()
    return path if base_dir is None or path.is_absolute() else Path(base_dir) / path


def pixel_digest(picture: Image) -> str:
    """`sha256:<64 hex>` of size and pixels: equal for equal pictures, whatever file they came from."""
    digest = hashlib.sha256(f"{picture.mode} {picture.width}x{picture.height} ".encode())
    digest.update(picture.tobytes())
    return f"sha256:{digest.hexdigest()}"


def _from_file(path: Path, where: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    _must_be_a_file(path, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            with Image.open(path) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise InputError(
                        f"{where}: the image {str(path)!r} has {opened.width} x {opened.height} pixels; scale it down "
                        f"to at most {MOST_PIXELS:,}."
                    )
                opened.load()
                return _upright_rgb(opened, where)
    except Image.DecompressionBombError:
        raise InputError(
            f"{where}: the image {str(path)!r} claims so many pixels that it could fill the memory; scale it down to "
            f"at most {MOST_PIXELS:,}."
        ) from None
    except UnidentifiedImageError:
        raise InputError(f"{where}: {str(path)!r} is not an image that Pillow can read; convert it to PNG.") from None
    except InputError:
        raise
    except Exception as error:  # a decoder raises what it likes: OSError, SyntaxError, struct.error
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(
            f"{where}: the image {str(path)!r} is broken ({reason[0][:120]}); copy it again or leave it out."
        ) from error


def _must_be_a_file(path: Path, where: str) -> None:
    try:
        found = path.exists()
    except OSError:  # longer than a file name can be: text or base64 in the place of a name
        raise InputError(f"{where}: {str(path)[:60]!r}... is no file name; give the path of an image.") from None
    if not found:
        raise InputError(f"{where}: the image {str(path)!r} does not exist; correct the path or the image folder.")
    if path.is_dir():
        raise InputError(f"{where}: {str(path)!r} is a folder; name an image file in it.")
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{where}: {str(path)!r} is no ordinary file; name an image file.")


def _upright_rgb(picture: Image, where: str) -> Image:
    from PIL import Image, ImageOps

    if not picture.width or not picture.height:
        raise InputError(f"{where} has {picture.width} x {picture.height} pixels; give one that is not empty.")
    if max(picture.size) > _LONGEST * min(picture.size):
        raise InputError(
            f"{where} has {picture.width} x {picture.height} pixels, over {_LONGEST} times as long as wide; crop it."
        )
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _eight_bit_grey(picture, where)
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    rgb = picture.convert("RGB") if picture.mode != "RGB" else picture.copy()
    rgb.info = {}
    if min(rgb.size) < _LEAST_SIDE:
        rgb = rgb.resize((rgb.width * _LEAST_SIDE, rgb.height * _LEAST_SIDE), Image.Resampling.NEAREST)
    return rgb


def _eight_bit_grey(picture: Image, where: str) -> Image:
    """Greys of 16 or 32 bits or floating point: 0..1, 0..255 or 0..65535, whichever holds them all, becomes 0..255."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # NaN too
        raise InputError(
            f"{where} has grey values from {low:g} to {high:g}; scale them to 0..255 and save it with 8 bits."
        )
    if picture.mode.startswith("I;16") or high > 255:
        scale = 255 / 65535
    elif picture.mode == "F" and high <= 1:
        scale = 255.0
    else:
        scale = 1.0
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))
