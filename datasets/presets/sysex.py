"""Yamaha DX7 voices as bytes: system-exclusive messages, banks, raw dumps.

Two layouts of a voice exist: VCED, one parameter per byte, 155 of them (156
with the operator switches), and VMEM, the same packed into 128 bytes, of
which 32 make a bank. Both are described in Dexed's documentation:
https://github.com/asb2m10/dexed/blob/master/Documentation/sysex-format.txt
"""

import collections
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

VCED_BYTES = 155
VMEM_BYTES = 128
BANK_VOICES = 32
BANK_BYTES = BANK_VOICES * VMEM_BYTES
ALL_OPERATORS_ON = 0b111111

_BANK_HEADER = bytes.fromhex("f0 43 00 09 20 00")
_VOICE_HEADER = bytes.fromhex("f0 43 00 00 01 1b")
_END = 0xF7
# Different problems of a file that are told.
_SHOWN = 5

# VMEM fields: (byte, lowest bit, bits, VCED byte). An operator takes 17
# packed bytes and 21 unpacked ones; the other fields follow.
_OPERATOR_FIELDS = (
    *((byte, 0, 7, byte) for byte in range(11)),
    (11, 0, 2, 11),
    (11, 2, 2, 12),
    (12, 0, 3, 13),
    (12, 3, 4, 20),
    (13, 0, 2, 14),
    (13, 2, 3, 15),
    (14, 0, 7, 16),
    (15, 0, 1, 17),
    (15, 1, 5, 18),
    (16, 0, 7, 19),
)
_FIELDS = np.array(
    [
        *(
            (17 * operator + packed, bit, bits, 21 * operator + byte)
            for operator in range(6)
            for packed, bit, bits, byte in _OPERATOR_FIELDS
        ),
        *((102 + i, 0, 7, 126 + i) for i in range(8)),
        (110, 0, 5, 134),
        (111, 0, 3, 135),
        (111, 3, 1, 136),
        *((112 + i, 0, 7, 137 + i) for i in range(4)),
        (116, 0, 1, 141),
        (116, 1, 3, 142),
        (116, 4, 3, 143),
        *((117 + i, 0, 7, 144 + i) for i in range(11)),
    ]
)


def checksum(payload: bytes) -> int:
    """Checksum of a message: the low 7 bits of the negated sum."""
    return -sum(payload) & 0x7F


def unpack(
    packed: UInt8[np.ndarray, "voices 128"],
) -> UInt8[np.ndarray, "voices 156"]:
    """Unpacks VMEM voices; bits that the layout does not use are ignored.

    Returns:
      VCED voices, every operator on. Values may be out of their DX7 range,
      as the packed fields are wider than some ranges.
    """
    byte, bit, bits, to = _FIELDS.T
    voices = np.full((len(packed), VCED_BYTES + 1), ALL_OPERATORS_ON, np.uint8)
    voices[:, to] = packed[:, byte] >> bit & (1 << bits) - 1
    return voices


def pack(
    voices: UInt8[np.ndarray, "voices bytes"],
) -> UInt8[np.ndarray, "voices 128"]:
    """Packs VCED voices, 155 or 156 bytes each, each value in its range.

    The operator switches have no place in a packed voice and are dropped.
    """
    packed = np.zeros((len(voices), VMEM_BYTES), np.uint8)
    for byte, bit, _, source in _FIELDS:
        packed[:, byte] |= voices[:, source] << np.uint8(bit)
    return packed


def messages(data: bytes) -> list[bytes]:
    """Splits data into its system-exclusive messages, F0 to F7.

    Bytes between messages are left out; a last message without its F7 comes
    back as far as it goes.
    """
    # A message ends at F7; a stray F0 before it starts another one.
    return re.findall(rb"\xf0[^\xf0\xf7]*\xf7?", data)


def parse(
    data: bytes,
) -> tuple[UInt8[np.ndarray, "voices 156"], list[str]]:
    """Reads the voices of a file, telling its format from its content.

    Known are: system-exclusive messages, of one voice (163 bytes) or of a
    bank (4,104 bytes), any number of them; raw single voices (155 or 156
    bytes); and raw packed voices, any multiple of 128 bytes.

    Returns:
      VCED voices with the bytes as found, and what is wrong with the file
      but does not prevent reading it: checksums that do not match, messages
      that are no voices.

    Raises:
      ValueError: the data hold no voice in any of these formats.
    """
    parts, found = [], collections.Counter[str]()
    framed = data[:1] == b"\xf0" or (
        len(data) % VMEM_BYTES and b"\xf0\x43" in data
    )
    for message in messages(data) if framed else []:
        voices, problem = _parse_message(message)
        if problem:
            found[problem] += 1
        if voices is not None:
            parts.append(voices)
    # A file may have as many as it has bytes.
    problems = [
        f"{problem} ({count} times)" if count > 1 else problem
        for problem, count in list(found.items())[:_SHOWN]
    ]
    if len(found) > _SHOWN:
        problems.append(f"and {len(found) - _SHOWN} others")
    if parts:
        return np.concatenate(parts), problems
    if framed:
        raise ValueError("; ".join(problems) or "no complete message")
    raw = np.frombuffer(data, np.uint8)
    if len(data) in (VCED_BYTES, VCED_BYTES + 1):
        voices = np.full((1, VCED_BYTES + 1), ALL_OPERATORS_ON, np.uint8)
        voices[0, : len(data)] = raw
        return voices, []
    if data and len(data) % VMEM_BYTES == 0:
        return unpack(raw.reshape(-1, VMEM_BYTES)), []
    raise ValueError(
        f"{len(data)} bytes are no DX7 voices: expected system-exclusive "
        "messages, 155 or 156 bytes of one voice, or a multiple of 128 bytes "
        "of packed voices"
    )


def _parse_message(message: bytes) -> tuple[np.ndarray | None, str]:
    """Voices of a message, or None, and what is wrong with it."""
    if len(message) < 6 or message[1] != 0x43:
        return None, "a message that is not Yamaha's"
    sizes = {9: BANK_BYTES, 0: VCED_BYTES}
    if message[2] & 0x70 or message[3] not in sizes:
        return None, "a message that is no DX7 voice or bank"
    size = sizes[message[3]]
    payload = message[6 : 6 + size]
    if len(message) != size + 8 or message[-1] != _END:
        return None, (
            f"a {'bank' if size == BANK_BYTES else 'voice'} message of "
            f"{len(message)} bytes instead of {size + 8}"
        )
    problem = ""
    if checksum(payload) != message[-2]:
        problem = (
            f"checksum is {message[-2]:#04x}, the data say "
            f"{checksum(payload):#04x}"
        )
    data = np.frombuffer(payload, np.uint8)
    if size == BANK_BYTES:
        return unpack(data.reshape(-1, VMEM_BYTES)), problem
    voices = np.full((1, VCED_BYTES + 1), ALL_OPERATORS_ON, np.uint8)
    voices[0, :VCED_BYTES] = data
    return voices, problem


def voice_message(voice: UInt8[np.ndarray, " bytes"]) -> bytes:
    """Single-voice message (163 bytes) of a VCED voice, on MIDI channel 1."""
    payload = voice[:VCED_BYTES].tobytes()
    return _VOICE_HEADER + payload + bytes([checksum(payload), _END])


def bank_message(voices: UInt8[np.ndarray, "voices bytes"]) -> bytes:
    """Bank message (4,104 bytes) of exactly 32 VCED voices, MIDI channel 1.

    Raises:
      ValueError: there are not 32 voices.
    """
    if len(voices) != BANK_VOICES:
        raise ValueError(f"a bank has 32 voices, not {len(voices)}")
    payload = pack(voices).tobytes()
    return _BANK_HEADER + payload + bytes([checksum(payload), _END])


def read_names(voices: UInt8[np.ndarray, "voices bytes"]) -> list[str]:
    """Names of VCED voices; bytes that are not printable become spaces."""
    letters = voices[:, 145:155] & 0x7F
    letters = np.where((letters < 32) | (letters > 126), 32, letters)
    return [
        row.tobytes().decode("ascii").strip()
        for row in letters.astype(np.uint8)
    ]


def write_names(
    voices: UInt8[np.ndarray, "voices bytes"], names: Sequence[str]
) -> UInt8[np.ndarray, "voices bytes"]:
    """Returns VCED voices under new names: 10 characters of printable ASCII.

    Longer names are cut; other characters become question marks.
    """
    voices = voices.copy()
    for voice, name in zip(voices, names, strict=True):
        text = "".join(c if " " <= c <= "~" else "?" for c in name)
        voice[145:155] = np.frombuffer(text.ljust(10)[:10].encode(), np.uint8)
    return voices
