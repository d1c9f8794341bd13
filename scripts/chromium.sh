#!/bin/sh
# Print the path of a Chromium or Chrome for the dashboard's tests; install one where that needs
# no question (Debian or Ubuntu, as root or with passwordless sudo). Prints nothing without one.
set -eu

find_browser() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" && return
    done
    for app in 'Google Chrome' Chromium; do
        binary="/Applications/$app.app/Contents/MacOS/$app"
        if [ -x "$binary" ]; then
            printf '%s\n' "$binary"
            return
        fi
    done
    return 1
}

apt_install() {
    command -v apt-get >/dev/null || return 1
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        sudo=sudo
    fi
    echo 'Installing chromium for the tests of the dashboard' >&2
    $sudo apt-get update -qq >&2 || return 1
    $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >&2
}

find_browser && exit
apt_install || true
find_browser ||
    echo 'specfarm: no Chromium or Chrome found, and none could be installed without a question; the tests that need a browser will say so. Install one (Debian: sudo apt-get install chromium).' >&2
