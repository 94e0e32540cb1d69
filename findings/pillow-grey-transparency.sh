#!/usr/bin/env bash
# A grey PNG of 2 or 4 bits whose transparent value is 1, as the tRNS chunk of the PNG
# specification says it.
#
# Expected: convert("RGBA") makes its pixels of the value 1 transparent, as those of the same
# picture with 8 bits.
# Seen with Pillow 13.0.0 on Python 3.11: the pixels are scaled to 8 bits (1 of 4 bits becomes
# 17, 1 of 2 bits becomes 85), the transparent value is not, so that the picture stays opaque.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pillow==13.0.0"
"$work/venv/bin/python" - <<'END'
import io
import platform
import struct
import sys
import zlib

import PIL
from PIL import Image

SIDE = 8
SEEN = {2: 255, 4: 255, 8: 0}  # by depth, the opacity of a pixel that is transparent


def chunk(name, content):
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def grey_png(bits):
    """All pixels have the value 1, and 1 is the transparent value."""
    row = 0
    for _ in range(SIDE):
        row = row << bits | 1
    row = row.to_bytes(SIDE * bits // 8, "big")
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", struct.pack(">H", 1))
        + chunk(b"IDAT", zlib.compress((b"\0" + row) * SIDE))
        + chunk(b"IEND", b"")
    )


print(f"Pillow {PIL.__version__}, Python {platform.python_version()}")
found = {}
for bits in SEEN:
    image = Image.open(io.BytesIO(grey_png(bits)))
    found[bits] = image.convert("RGBA").getpixel((0, 0))[3]
    value = image.getpixel((0, 0))
    print(
        f"{bits} bits: pixel {value}, transparent value {image.info['transparency']}, "
        f"opacity after convert('RGBA') {found[bits]}"
    )
sys.exit(0 if found == SEEN else 1)
END
