"""The key schedule against vectors of its own specification, of RFC 5869, and of an AES-GCM that is not the engine's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from xensecure.link.engine import Link
from xensecure.proto.handshake import LinkKeys
from xensecure.proto.keyschedule import DirectionKeys, KeySchedule, Transcript, hkdf_expand, hkdf_extract, invitation_key, key_id
from xensecure.proto.messages import Contact, DestinationHello, FrameType, Purpose, SourceHello
from xensecure.proto.token import Token

VECTORS = Path(__file__).with_name("vectors")
CONTENT = json.loads((VECTORS / "keyschedule.json").read_text(encoding="utf-8"))

# RFC 5869 appendix A: IKM, salt, info, PRK, OKM. Its outputs are 42 or 82 bytes; ours is one block, so only the first 32 bytes can be compared.
RFC_5869 = {
    "A.1": (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    "A.2": (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    "A.3": (
        "0b" * 22,
        "",
        "",
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
}


@pytest.mark.parametrize("case", RFC_5869)
def test_hkdf_is_that_of_rfc_5869(case: str) -> None:
    """The published PRK, and the first block of the published output, come out."""
    ikm, salt, info, prk, okm = (bytes.fromhex(text) for text in RFC_5869[case])
    assert hkdf_extract(salt, ikm) == prk
    for length in (1, 12, 16, 32):
        assert hkdf_expand(prk, info, length) == okm[:length]


@pytest.mark.parametrize("length", [-1, 0, 33, 64])
def test_hkdf_gives_one_block_and_no_more(length: int) -> None:
    """A length outside one block is our own mistake and raises ValueError."""
    with pytest.raises(ValueError):
        hkdf_expand(bytes(32), b"", length)


def test_committed_vectors_are_what_the_script_makes() -> None:
    """tests/vectors/keyschedule.json is the output of the independent script, byte for byte."""
    script = VECTORS / "make_vectors.py"
    made = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, timeout=60, check=True, env={"PYTHONIOENCODING": "utf-8"}).stdout
    assert made == (VECTORS / "keyschedule.json").read_bytes()
    assert "import xensecure" not in script.read_text(encoding="utf-8")


def schedule_of(case: dict[str, Any]) -> tuple[KeySchedule, Transcript]:
    """The schedule and transcript of one vector, from its inputs."""
    transcript = Transcript(
        source_pin=bytes.fromhex(case["source_pin"]),
        source_hello=bytes.fromhex(case["source_hello"]),
        destination_pin=bytes.fromhex(case["destination_pin"]),
        destination_hello=bytes.fromhex(case["destination_hello"]),
        key_id=bytes.fromhex(case["key_id"]),
    )
    return KeySchedule(link_key=bytes.fromhex(case["link_key"]), ekm=bytes.fromhex(case["ekm"]), transcript=transcript), transcript


def contact_of(case: dict[str, Any]) -> Contact:
    """The contact of one vector."""
    name, port, addresses = case["contact"]
    return Contact(name=name, port=port, addresses=tuple(addresses))


EXCHANGES = pytest.mark.parametrize("case", CONTENT["exchanges"], ids=lambda case: str(case["name"]))


@EXCHANGES
def test_key_schedule_is_that_of_the_specification(case: dict[str, Any]) -> None:
    """Transcript, both proofs, all frame keys, the next link key and the key id equal the vector."""
    schedule, transcript = schedule_of(case)
    source, destination = schedule.source_keys(), schedule.destination_keys()
    assert {
        "transcript": transcript.digest().hex(),
        "prk": schedule.secret().hex(),
        "source_proof": schedule.source_proof().hex(),
        "destination_proof": schedule.destination_proof().hex(),
        "key_source": source.key.hex(),
        "iv_source": source.iv.hex(),
        "key_destination": destination.key.hex(),
        "iv_destination": destination.iv.hex(),
        "next_link_key": schedule.next_link_key().hex(),
        "key_id": key_id(bytes.fromhex(case["link_key"])).hex(),
    }.items() <= case.items()


@EXCHANGES
def test_hellos_are_those_of_the_specification(case: dict[str, Any]) -> None:
    """Both hellos are written as the vector has them, and read back the same."""
    source = SourceHello(purpose=Purpose(case["purpose"]), key_id=bytes.fromhex(case["key_id"]), contact=contact_of(case))
    destination = DestinationHello(challenge=bytes.fromhex(case["challenge"]))
    assert source.push().hex() == case["source_hello"]
    assert destination.push().hex() == case["destination_hello"]
    assert SourceHello.pull(source.push()) == source
    assert DestinationHello.pull(destination.push()) == destination


@pytest.mark.parametrize("case", CONTENT["tokens"], ids=lambda case: str(case["name"]))
def test_token_is_that_of_the_specification(case: dict[str, Any]) -> None:
    """A token is written and read as the vector has it, and leads to the same invitation key."""
    token = Token(expiry=case["expiry"], pin=bytes.fromhex(case["pin"]), secret=bytes.fromhex(case["secret"]), contact=contact_of(case))
    assert token.encode() == case["token"]
    assert Token.decode(case["token"]) == token
    assert invitation_key(token.secret).hex() == case["invitation_key"]
    assert key_id(invitation_key(token.secret)).hex() == case["invitation_key_id"]


@EXCHANGES
def test_every_input_counts(case: dict[str, Any]) -> None:
    """A change of one bit in the link key, the exporter value, a pin, a hello or the key id changes both proofs and every key."""
    before = outputs(schedule_of(case)[0])
    for name in ("link_key", "ekm", "source_pin", "destination_pin", "source_hello", "destination_hello", "key_id"):
        value = bytearray.fromhex(case[name])
        value[-1] ^= 1
        after = outputs(schedule_of({**case, name: value.hex()})[0])
        assert not set(before) & set(after), name
    assert len(set(before)) == len(before)


def outputs(schedule: KeySchedule) -> list[bytes]:
    """All that leaves a key schedule."""
    source, destination = schedule.source_keys(), schedule.destination_keys()
    return [schedule.source_proof(), schedule.destination_proof(), source.key, source.iv, destination.key, destination.iv, schedule.next_link_key()]


def test_transcript_parts_cannot_flow_into_each_other() -> None:
    """Moving a byte from the end of one part to the start of the next gives another transcript."""
    first = Transcript(source_pin=b"p", source_hello=b"ab", destination_pin=b"q", destination_hello=b"c", key_id=b"k")
    second = Transcript(source_pin=b"pa", source_hello=b"b", destination_pin=b"q", destination_hello=b"c", key_id=b"k")
    assert first.digest() != second.digest()


def test_secrets_are_not_shown() -> None:
    """No secret stands in the text of a schedule, a key or a token."""
    schedule, _ = schedule_of(CONTENT["exchanges"][0])
    shown = f"{schedule!r} {schedule.source_keys()!r} {schedule.destination_keys()!r} {Token.decode(CONTENT['tokens'][0]['token'])!r}"
    for secret in (*outputs(schedule), schedule.secret(), bytes.fromhex(CONTENT["tokens"][0]["secret"])):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def frame_of(keys: DirectionKeys, counter: int, header: bytes, payload: bytes) -> bytes:
    """One frame by F1 and F3, sealed by another AES-GCM than the engine's."""
    nonce = bytes(left ^ right for left, right in zip(keys.iv, bytes(4) + counter.to_bytes(8, "big"), strict=True))
    return header + AESGCM(keys.key).encrypt(nonce, payload, header)


def test_engine_seals_frames_as_specified() -> None:
    """Frames of the engine equal those that another AES-GCM makes by F1, F3 and, past the limit, F4."""
    case = CONTENT["exchanges"][0]
    keys = schedule_of(case)[0].source_keys()
    ratcheted = DirectionKeys(key=bytes.fromhex(case["ratcheted_key_source"]), iv=keys.iv)
    # A frame of 5 bytes is 4 blocks (F4): three of them fill 12, and the fourth is sealed under the next key with the counter going on.
    link = Link(LinkKeys(send=keys, receive=keys), ratchet_blocks=12)
    for counter in range(4):
        header = b"\x04\x00\x00\x00" + (5).to_bytes(4, "big") + (5 * counter).to_bytes(8, "big")
        expected = frame_of(ratcheted if counter == 3 else keys, counter, header, b"hello")
        assert link.seal(FrameType.DATA, b"hello", offset=5 * counter) == expected
