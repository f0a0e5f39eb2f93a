# To be sourced. Installs missing Debian packages. On other systems, says which packages are needed and goes on.

BUILD_PACKAGES="gcc libc6-dev meson ninja-build pkg-config libjansson-dev libpcre2-dev libzstd-dev libxxhash-dev"

install_packages() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        echo "No apt-get here. What Debian calls so is needed: $*" >&2
        return 0
    fi
    missing=""
    for package in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "To be installed by root: apt-get install$missing" >&2; return 1; }
        as_root=sudo
    fi
    echo "Installing$missing"
    log=$(mktemp)
    # shellcheck disable=SC2086 # packages are words
    if $as_root apt-get update >"$log" 2>&1 && $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends $missing >>"$log" 2>&1; then
        rm -f "$log"
    else
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
}

# quietly COMMAND...: shows the output of COMMAND only if COMMAND fails.
quietly() {
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        status=$?
        cat "$log" >&2
        rm -f "$log"
        return $status
    fi
}
