#!/bin/sh
# Get OpenBLAS for MLX on Linux, into the system or into the virtual environment at $1.
# Without it Pippin runs too, slowly; so nothing that goes wrong here fails the set-up.
set -u

venv=${1:-.venv}
python=$venv/bin/python
package=libopenblas0-pthread
folder=$venv/lib/openblas

[ "$(uname -s)" = Linux ] || exit 0

loadable() {
    # The same question, in the same way, as a run asks it.
    [ "$("$python" -c 'from runtime.blas import load_blas; print(load_blas(False))' 2>/dev/null)" \
        = openblas ]
}

with_timeout() {
    timeout 300 "$@" </dev/null >>"$log" 2>&1
}

into_the_system() {
    echo "==> OpenBLAS: installing $package (apt-get, as root)"
    export DEBIAN_FRONTEND=noninteractive
    with_timeout apt-get install -y --no-install-recommends "$package" && return
    with_timeout apt-get update
    with_timeout apt-get install -y --no-install-recommends "$package"
}

into_the_environment() {
    echo "==> OpenBLAS: unpacking $package into $folder (apt-get download, no root needed)"
    rm -rf "$folder" && mkdir -p "$folder/packages" || return
    # OpenBLAS needs the other two; where the system has them, or there is no such package, fine.
    for name in "$package" libgfortran5 libquadmath0; do
        (cd "$folder/packages" && with_timeout apt-get download "$name")
    done
    for file in "$folder"/packages/*.deb; do
        [ -e "$file" ] && with_timeout dpkg -x "$file" "$folder/packages"
    done
    # Side by side, so that one folder has all that is to be loaded.
    find "$folder/packages" \( -name 'libopenblas.so.0' -o -name 'libgfortran.so.5' \
        -o -name 'libquadmath.so.0' \) -exec cp -L {} "$folder/" \; 2>>"$log"
    rm -rf "$folder/packages"
    [ -e "$folder/libopenblas.so.0" ]
}

if loadable; then
    echo "==> OpenBLAS: there already"
    exit 0
fi

log=$(mktemp) || exit 0
trap 'rm -f "$log"' EXIT

if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then into_the_system; else into_the_environment; fi
fi

if loadable; then
    echo "==> OpenBLAS: ready"
else
    tail -n 2 "$log" | sed 's/^/    /'
    echo "==> OpenBLAS: could not be had. Pippin runs all the same, but slowly: MLX computes with"
    echo "    the reference BLAS, at about 6 instead of about 100 GFLOP/s. To mend it, install"
    echo "    OpenBLAS (Debian, Ubuntu: apt-get install $package; Fedora: dnf install openblas)"
    echo "    so that libopenblas.so.0 is found, and run make setup again."
fi
exit 0
