"""Files that hold a plug-in's whole state: .vstpreset, and u-he's .h2p.

A .vstpreset file (Steinberg, "VST 3 preset format") is a header, chunks, and
a list of them; all numbers are little-endian:

    "VST3"  int32 version  32 characters class  int64 position of the list
    chunks
    "List"  int32 entries  entries: 4 characters name, int64 start, int64 size

The chunk "Comp" is what the plug-in itself wrote. u-he's plug-ins write the
text of their own .h2p files there, which starts with "#AM=" and the name of
the instrument. An .h2p file is thus read by the plug-in, as a state.
"""

import struct

_HEADER = struct.Struct("<4si32sq")
_LIST = struct.Struct("<4si")
_ENTRY = struct.Struct("<4sqq")
_VERSION = 1
_H2P_START = b"#AM="


def read(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Reads a .vstpreset file.

    Returns:
      The plug-in's class, and its chunks by name.

    Raises:
      ValueError: it is no such file, or cut short.
    """
    try:
        magic, _, plugin, position = _HEADER.unpack_from(data)
        word, count = _LIST.unpack_from(data, position)
        if (magic, word) != (b"VST3", b"List") or not 0 <= count <= 128:
            raise ValueError("no VST3 preset")
        chunks = {}
        for i in range(count):
            place = position + _LIST.size + i * _ENTRY.size
            name, start, size = _ENTRY.unpack_from(data, place)
            if min(start, size) < 0 or start + size > len(data):
                raise ValueError("it is cut short")
            chunks[name.decode("latin-1")] = data[start : start + size]
    except (struct.error, ValueError) as error:
        raise ValueError(f"not a VST3 preset file ({error})") from None
    return plugin, chunks


def write(plugin: bytes, chunks: dict[str, bytes]) -> bytes:
    """Writes a .vstpreset file; the inverse of `read`."""
    body, entries = b"", b""
    for name, chunk in chunks.items():
        start = _HEADER.size + len(body)
        entries += _ENTRY.pack(name.encode("latin-1"), start, len(chunk))
        body += chunk
    header = _HEADER.pack(b"VST3", _VERSION, plugin, _HEADER.size + len(body))
    return header + body + _LIST.pack(b"List", len(chunks)) + entries


def h2p_text(data: bytes) -> bytes:
    """The part of an .h2p file that a plug-in's state holds.

    Args:
      data: the file's bytes: comments about the preset, then the preset from
        the line "#AM=" on.

    Returns:
      The preset, its line ends those of Unix.

    Raises:
      ValueError: it is no .h2p file.
    """
    plain = data.replace(b"\r\n", b"\n")
    start = plain.find(_H2P_START)
    if start < 0 or b"\n#cm=" not in plain[start:]:
        raise ValueError("not an .h2p file: it has no lines #AM= and #cm=")
    return plain[start:]


def instrument(text: bytes) -> str:
    """The instrument that an .h2p text names in its first line."""
    first = text.partition(b"\n")[0]
    return first[len(_H2P_START) :].strip().decode("latin-1")


def with_h2p(initial: bytes, data: bytes) -> bytes:
    """A u-he plug-in's state with the preset of an .h2p file.

    Args:
      initial: a state that the plug-in gave, as a .vstpreset file.
      data: of the .h2p file.

    Returns:
      A .vstpreset file.

    Raises:
      ValueError: it is no .h2p file, one of another instrument, or the
        plug-in does not keep its state as such a text.
    """
    text = h2p_text(data)
    plugin, chunks = read(initial)
    state = chunks.get("Comp", b"")
    start = state.find(_H2P_START)
    if start < 0:
        raise ValueError("the plug-in's state is no .h2p text")
    theirs, ours = instrument(state[start:]), instrument(text)
    if theirs != ours:
        raise ValueError(f"a preset of {ours}, the plug-in is {theirs}")
    # Whatever ends the text there, such as a zero byte, stays.
    end = state.find(b"\0", start)
    rest = state[end:] if end >= 0 else b""
    chunks["Comp"] = state[:start] + text.rstrip(b"\0") + rest
    return write(plugin, chunks)
