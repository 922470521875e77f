# shellcheck shell=bash
# What the scripts share. Source it; it changes into the top of the repository.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT=$PWD
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
WARREN=${WARREN:-$TARGET/release/warren}
export ROOT TARGET WARREN

say() { printf '\033[1m== %s\033[0m\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# What it takes to build: uBPF is C (cmake, bindgen's libclang), kernels are C for BPF (clang).
# shellcheck disable=SC2034  # used by the scripts that include this
BUILD_PACKAGES=(build-essential clang cmake libclang-dev)

# need_packages PACKAGE.. - installs what is missing (Debian and its kin).
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    say "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_rust() {
    command -v cargo >/dev/null && return
    [ -r "$HOME/.cargo/env" ] || die "cargo is missing: install Rust from https://rustup.rs"
    # shellcheck disable=SC1091
    . "$HOME/.cargo/env"
}

need_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse || true
    [ -e /dev/fuse ] || die "/dev/fuse is missing: this kernel (or container) has no FUSE"
}

# mount_image IMAGE DIR [OPTIONS] - mounts with the daemon as a child, its id in $DAEMON.
mount_image() {
    "$WARREN" mount --foreground "$1" "$2" ${3:+-o "$3"} &
    DAEMON=$!
    local tries
    for tries in $(seq 100); do
        mountpoint -q "$2" && return
        kill -0 "$DAEMON" 2>/dev/null || break
        sleep 0.1
    done
    die "$1 could not be mounted on $2 (tried $tries times)"
}

# unmount_image DIR - unmounts and waits for the daemon, whose exit code it returns.
unmount_image() {
    "$WARREN" umount "$1"
    local code=0
    wait "$DAEMON" || code=$?
    DAEMON=
    return $code
}
