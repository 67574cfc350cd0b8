"""Images of more than 8 bits a channel, written by hand: the reference for how they are read."""

import struct
import zlib

import numpy as np


def write_png(path, values, colour, *chunks):
    """A PNG of 16 bits a channel from values (H, W, C)."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)), *chunks]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunk = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk))


def write_tiff(path, values, order="<", compressed=False, planar=False, **tags):
    """A TIFF from values (H, W) or (H, W, C) of any number type; `tags` are further ones, such as `t338`."""
    height, width, channels = values.shape if values.ndim == 3 else (*values.shape, 1)
    values = values.astype(values.dtype.newbyteorder(order)).reshape(height, width, channels)
    planes = [values[..., i] for i in range(channels)] if planar else [values]
    strips = [zlib.compress(plane.tobytes()) if compressed else plane.tobytes() for plane in planes]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = {256: [width], 257: [height], 258: [8 * values.dtype.itemsize] * channels, 259: [8 if compressed else 1]}
    entries |= {262: [1 if channels == 1 else 2], 273: [0] * len(strips), 277: [channels], 278: [height]}
    entries |= {279: [len(strip) for strip in strips], 284: [2 if planar else 1], 339: [kind] * channels}
    entries |= {int(name[1:]): [value] for name, value in tags.items()}
    long = {tag for tag in entries if tag in (273, 279)}
    width_of = {tag: 4 if tag in long else 2 for tag in entries}
    end = 8 + 2 + 12 * len(entries) + 4
    apart = {tag: len(each) * width_of[tag] for tag, each in sorted(entries.items()) if len(each) * width_of[tag] > 4}
    places = dict(zip(apart, np.cumsum([end, *apart.values()]).tolist(), strict=False))
    start = end + sum(apart.values())
    entries[273] = np.cumsum([start, *map(len, strips)])[:-1].tolist()
    table, beside = b"", b""
    for tag, each in sorted(entries.items()):
        body = struct.pack(f"{order}{len(each)}{'I' if tag in long else 'H'}", *each)
        head = struct.pack(f"{order}HHI", tag, 4 if tag in long else 3, len(each))
        table += head + (struct.pack(f"{order}I", places[tag]) if tag in apart else body.ljust(4, b"\0"))
        beside += body if tag in apart else b""
    start_of_file = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    path.write_bytes(start_of_file + table + bytes(4) + beside + b"".join(strips))
