#!/bin/sh
# Builds the wheel, installs it into virtual environments and tests it there. Exit status 77: skipped; the reason is printed.
# Usage: test.sh LAYOUT SAME OVERHEAD (the programs of tests/abi and tests/bindings)
set -eu
layout=$(realpath "$1") same=$(realpath "$2") overhead=$(realpath "$3")
cd "$(dirname "$0")"
tests=$(realpath ../../tests/bindings)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}

skip() {
    echo "skipped: the tests of the Python package: $1"
    exit 77
}

"$python" -c 'import ensurepip, venv' 2>/dev/null || skip "$python with its module venv is missing"
"$python" -m venv "$work/tools"
bin=$work/tools/bin
"$bin/pip" install -q --disable-pip-version-check -r requirements-test.txt || skip "requirements-test.txt cannot be installed"

echo "== ruff"
"$bin/ruff" check . "$tests"
"$bin/ruff" format --check . "$tests"

echo "== the wheel, in a clean environment"
"$bin/pip" wheel -q --disable-pip-version-check --no-deps --wheel-dir "$work/wheel" .
"$python" -m venv "$work/clean"
"$work/clean/bin/pip" install -q --disable-pip-version-check "$work"/wheel/*.whl
"$tests/model.sh" "$work/model"
sed -n '/^```python/,/^```$/p' README.md | sed '1d;$d' > "$work/readme.py"
(cd "$work" && clean/bin/python readme.py model > readme.txt && test -s readme.txt)

echo "== pytest, mypy"
"$bin/pip" install -q --disable-pip-version-check "$work"/wheel/*.whl
"$bin/mypy" --cache-dir "$work/mypy"
"$layout" > "$work/layout.json"
(cd "$work" && MPLBACKEND=Agg DSV2_LAYOUT=$work/layout.json "$bin/pytest" -q -p no:cacheprovider "$OLDPWD/tests")

echo "== examples"
(
    cd "$work"
    examples=$OLDPWD/examples
    "$bin/python" "$examples/hello.py" model "Once upon a time" > hello.txt
    # twice, so that the second goes on after the first
    for line in Hello Again; do
        echo "$line" | "$bin/python" "$examples/chat.py" model conversation > chat.txt
    done
    grep -q "going on after" chat.txt
    MPLBACKEND=Agg "$bin/python" "$examples/experts.py" model readme.py experts.png > experts.txt 2> bar.txt
    grep -q "layer 3" experts.txt
    test -s experts.png
)

echo "== the same from C and Python"
"$tests/same.sh" "$same" "$bin/python" "$tests/same.py"
"$bin/python" "$tests/overhead.py" "$overhead" "$work/model"
"$bin/python" "$tests/interrupt.py" "$work/model"

echo "== the package of version 0.1.0, with this library"
installed=$(cd "$work" && "$bin/python" -c 'import dsv2, pathlib; print(pathlib.Path(dsv2.__file__).parent)')
# shellcheck disable=SC2086 # a compiler and its options are words
"$bin/python" ../../tests/abi/test_release.py python "$installed" ${CC:-cc}
