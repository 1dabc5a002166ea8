"""Mutations that damage a valid file: bytes anywhere, and elements of the format's structure.

A mutation takes a `random.Random`, the file and the target's dictionary of words, and returns another file. It depends
on these arguments only, so an input can be made again from the seed and its number.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from perf.fuzz import wire

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

NUMBERS = (b"0", b"1", b"-1", b"2", b"3", b"7", b"255", b"256", b"999", b"65535", b"65536", b"100000", b"2147483647",
           b"-2147483648", b"4294967296", b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808",
           b"99999999999999999999999", b"1e10", b"1e38", b"1e308", b"1e309", b"-1e309", b"1e-320", b"nan", b"NaN",
           b"inf",
           b"-inf", b"0.5", b"-0.0", b"1D5", b"1E+400", b"T", b"F", b"''", b"'x'", b"", b"( 1, 2)", b"9" * 60)
LENGTHS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
           2**62, 2**63 - 1, 2**63, 2**64 - 1)
MAX_BYTES = 1 << 20  # largest input


def flip(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Change a bit or a byte."""
    if not data:
        return bytes([rng.randrange(256)])
    at = rng.randrange(len(data))
    byte = data[at] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
    return data[:at] + bytes([byte]) + data[at + 1 :]


def remove(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Remove some bytes."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + _length(rng, len(data) - start) :]


def repeat(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Repeat some bytes twice or many times."""
    start = rng.randrange(len(data) + 1)
    stop = start + _length(rng, len(data) - start)
    times = 2 if rng.random() < 0.9 else rng.choice((3, 10, 100, 1000))
    return data[:start] + data[start:stop] * min(times, 1 + 100_000 // max(stop - start, 1)) + data[stop:]


def move(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Write some bytes over others."""
    start, to = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    piece = data[start : start + _length(rng, len(data) - start)]
    return data[:to] + piece + data[to + len(piece) :]


def cut(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Remove the end."""
    return data[: rng.randrange(len(data) + 1)]


def word(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Put a word of the format at a random place."""
    if not words:
        return flip(rng, data, words)
    at, new = rng.randrange(len(data) + 1), rng.choice(words)
    return data[:at] + new + data[at + (len(new) if rng.random() < 0.5 else 0) :]


def integer(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Replace a binary number by a limit of its type."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return flip(rng, data, words)
    at = rng.randrange(len(data) - size + 1)
    value = rng.choice(LENGTHS) & (256**size - 1)
    return data[:at] + value.to_bytes(size, rng.choice(("big", "little"))) + data[at + size :]


_NUMBER = re.compile(rb"[-+]?\d+(?:\.\d*)?(?:[eED][-+]?\d+)?")


def number(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Replace a number in text. In a file of fixed columns the text behind it keeps its place if possible."""
    start = rng.randrange(len(data) + 1)
    found = _NUMBER.search(data, start) or _NUMBER.search(data)
    if found is None:
        return flip(rng, data, words)
    new = rng.choice(NUMBERS)
    begin, end = found.span()
    spare = len(new) - (end - begin)
    if 0 < spare <= begin and data[begin - spare : begin].isspace():
        begin -= spare
    return data[:begin] + new.rjust(end - begin if spare < 0 else 0) + data[end:]


ANY: tuple[Mutation, ...] = (flip, flip, remove, repeat, move, cut, word, word, integer, number)


def _length(rng: random.Random, most: int) -> int:
    return min(most, rng.choice((1, 2, 4, 8, 80, rng.randrange(most + 1))))


def card(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Change cards of a FITS header: another value or key, one card more or less, or a moved card."""
    heads = [at for at in range(0, len(data), 2880) if data[at : at + 8] in (b"SIMPLE  ", b"XTENSION")]
    if not heads:
        return word(rng, data, words)
    start = rng.choice(heads)
    stop = start
    while stop < len(data) and data[stop : stop + 8] != b"END     ":
        stop += 80
    cards = [data[at : at + 80] for at in range(start, stop, 80)]
    if not cards:
        return flip(rng, data, words)
    for _ in range(rng.choice((1, 1, 1, 1, 3))):
        k, kind = rng.randrange(len(cards)), rng.random()
        if kind < 0.4:
            cards[k] = (cards[k][:10] + rng.choice(NUMBERS).rjust(20)).ljust(80)[:80]
        elif kind < 0.75 and words:
            new = rng.choice(words).ljust(80)[:80]
            if rng.random() < 0.5:
                new = (new[:10] + rng.choice(NUMBERS).rjust(20)).ljust(80)[:80]
            cards.insert(k + 1, new)
        elif kind < 0.8:
            cards.insert(k, rng.choice(cards))
        elif kind < 0.87:
            del cards[k]
        elif kind < 0.95:
            cards[k] = flip(rng, cards[k], words)
        else:
            cards[k] = rng.choice(cards)[:8] + cards[k][8:]
        if not cards:
            break
    head = b"".join(cards) + b"END".ljust(80)
    head += b" " * (-len(head) % 2880)
    after = stop + 80 + -(stop + 80 - start) % 2880
    return data[:start] + head + data[after:]


JSON_VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, -0.0, "",
                                "x",
                                "\u0000", "\ud800", "\u202e", "../x", "/etc/passwd", "a" * 5000, [], {}, [1], [[1]],
                                {"a": 1}, [None], "long", "bytes", "record", "enum", "fixed", "null")


def tree(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Change values of a JSON document: replace, copy, remove, repeat or nest them."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return word(rng, data, words)
    places: list[tuple[Any, Any]] = []
    pending = [document]
    while pending:
        value = pending.pop()
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in inside:
            places.append((value, key))
            pending.append(child)
    if not places:
        return json.dumps(rng.choice(JSON_VALUES)).encode()
    for _ in range(rng.choice((1, 1, 1, 2))):
        holder, key = rng.choice(places)
        if (key not in holder) if isinstance(holder, dict) else key >= len(holder):
            continue
        kind = rng.random()
        if kind < 0.45:
            holder[key] = rng.choice(JSON_VALUES)
        elif kind < 0.6:
            other, place = rng.choice(places)
            if (place in other) if isinstance(other, dict) else place < len(other):
                holder[key] = json.loads(json.dumps(other[place])) if other is not document else 1
        elif kind < 0.75:
            del holder[key]
        elif kind < 0.9 and isinstance(holder, list):
            holder.extend(holder[:1] * rng.choice((1, 2, 100)))
        elif isinstance(holder, dict):
            name = rng.choice(words).decode("latin-1") if words else "x"
            holder[name] = rng.choice(JSON_VALUES)
        else:
            deep: Any = holder[key]
            for _ in range(rng.choice((1, 5, 40, 300))):
                deep = [deep]
            holder[key] = deep
    try:
        text = json.dumps(document).encode()
    except (ValueError, RecursionError):
        return data
    return text.replace(b'{"', b'{"a": 1, "a": 1, "', 1) if rng.random() < 0.02 else text


def fields(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Change fields of a protobuf message: number, wire type or value, one field more or less."""
    try:
        message = wire.decode(data)
    except (IndexError, RecursionError):
        return word(rng, data, words)
    holders = [message]
    for holder in holders:
        holders += [field[2] for field in holder if isinstance(field[2], list)]
    for _ in range(rng.choice((1, 1, 1, 2))):
        holder = rng.choice(holders)
        if not holder:
            holder.append([rng.randrange(1, 26), 0, 1])
        k, kind = rng.randrange(len(holder)), rng.random()
        field = holder[k]
        if kind < 0.4:
            if isinstance(field[2], int):
                field[2] = rng.choice(LENGTHS)
            elif isinstance(field[2], bytes):
                field[2] = rng.choice(words) if words and rng.random() < 0.5 else flip(rng, field[2], words)
            else:
                holder[k] = copy.deepcopy(rng.choice(rng.choice(holders) or [field]))
        elif kind < 0.6:
            new = rng.choice((rng.randrange(1, 27), 13, 14, 15, 20, 25, 6, 11))
            holder.insert(k, [new, 2, rng.choice(words) if words else b""] if rng.random() < 0.6 else [new, 0, 1])
        elif kind < 0.7:
            field[0] = rng.randrange(0, 27)
        elif kind < 0.78:
            holder.extend([field] * rng.choice((1, 1, 10)))
        elif kind < 0.9:
            del holder[k]
        else:
            holder[k] = [field[0], rng.choice((0, 1, 2, 3, 4, 5, 6, 7)), rng.choice((1, b"", bytes(8)))]
    return wire.encode(message)


def mutate(rng: random.Random, data: bytes, words: Sequence[bytes], structured: Sequence[Mutation],
           others: Sequence[bytes]) -> bytes:
    """Apply a few mutations, those of the format first.

    Parameters
    ----------
    rng : random.Random
    data : bytes
    words : sequence of bytes
        Words of the format.
    structured : sequence of Mutation
        Mutations that know the format; about half of all mutations.
    others : sequence of bytes
        Files from which a piece may be taken.

    Returns
    -------
    bytes
        At most `MAX_BYTES`.
    """
    if rng.random() < 0.03:
        other = rng.choice(others)
        data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    n_structured = rng.choice((0, 1, 1, 1, 2)) if structured else 0
    for _ in range(n_structured):
        data = rng.choice(structured)(rng, data, words)
    for _ in range(rng.choice((0, 0, 0, 1)) if n_structured else rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(ANY)(rng, data, words)
    return data[:MAX_BYTES]
