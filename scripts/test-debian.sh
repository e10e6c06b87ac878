#!/bin/sh
# Run the Python tests with what Debian 12 ships: its Python, cryptography, pyOpenSSL, cffi, setuptools.
#   scripts/test-debian.sh [pytest arguments]
# They run in a copy of the tree, where the engine is built with Debian's own tools.
set -eu

cd "$(dirname "$0")/.."
tree=build/debian
python=$PWD/.venv-debian/bin/python

mkdir -p "$tree"
# Tracked and new files; without what was deleted and not yet committed.
git ls-files --cached --others --exclude-standard | while read -r file; do [ ! -e "$file" ] || echo "$file"; done >"$tree.files"
# What was there and is no more must not be tested; the engine and its objects stay.
find "$tree" \( -name '*.py' -o -name '*.c' -o -name '*.h' \) ! -path "$tree/build/*" -delete
tar -c -T "$tree.files" | tar -x -C "$tree"
rm "$tree.files"

cd "$tree"
sum=$(cat csrc/* setup.py pyproject.toml | sha256sum)
if [ ! -e .done ] || [ "$(cat .done)" != "$sum" ]; then
    echo "building the engine with Debian's cffi and setuptools" >&2
    "$python" -m pip install -qq --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
    echo "$sum" >.done
fi
"$python" - <<'PY'
import sys
from importlib.metadata import version
shown = ", ".join(f"{name} {version(name)}" for name in ("cryptography", "pyOpenSSL", "cffi"))
print(f"Python {sys.version.split()[0]}, {shown}")
if not version("cryptography").startswith("38."):
    sys.exit("these are not Debian 12's libraries")
PY
exec "$python" -m pytest -p no:cacheprovider "$@"
