#!/bin/sh
# Installs, upgrades, rolls back or removes the two programs as services of this host.
#
#   sudo make install      sudo make rollback      sudo make uninstall
#
# PYTHON=/usr/bin/python3.12 chooses the interpreter. Without a clone, roll back or uninstall like this:
#
#   sudo sh /opt/binance-funding/current/packaging/install.sh rollback
#
# Each release is installed in its own directory, built and tried beside the release in use. The last step is one atomic
# rename that exchanges the link "current". If a step before it fails, nothing has changed.
set -eu
umask 022 # the users of the services must be able to read the installed files

prefix=/opt/binance-funding
units=/etc/systemd/system
settings=/etc/binance-funding.env
source=$(dirname "$(dirname "$(readlink -f "$0")")")
python=${PYTHON:-/usr/bin/python3}

die() {
    echo "$0: $*" >&2
    exit 1
}

systemd_runs() {
    [ -d /run/systemd/system ]
}

check_python() {
    # The units hide /home and /root and allow executables below /usr only.
    "$python" -c 'import os, sys; sys.exit(not os.path.realpath(sys.executable).startswith("/usr/"))' ||
        die "$python is not below /usr, where the services may run it; choose one with PYTHON=/usr/bin/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$python is too old: Python 3.10 or newer is needed; choose one with PYTHON=/usr/bin/python3.12"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
}

copy_files() {
    # The programs, and what their documentation refers to.
    (
        cd "$source"
        find binance_funding docs bench/results.md packaging/install.sh packaging/nginx -name __pycache__ -prune -o -type f \
            -exec cp --parents -t "$release" {} +
        cp binance_funding_ws_daemon.py funding_api_server.py ./*.service README.md CHANGELOG.md requirements.txt .env.example \
            "$release"
        install -m 0755 packaging/check.sh "$release/check"
    )
    # The clone may be private; the installed files must be readable.
    chmod -R u=rwX,go=rX "$release"
}

take_turn() {
    exec 9<"$prefix"
    flock 9 # one installation or rollback at a time
}

build_release() {
    install -d "$prefix"
    take_turn
    release=$(mktemp -d "$prefix/release.XXXXXX")
    trap 'rm -rf "$release"' EXIT
    trap 'exit 1' HUP INT TERM
    chmod 0755 "$release"

    "$python" -m venv "$release/venv"
    "$release/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        -r "$source/requirements.txt"
    copy_files
    # Compile now, because the services cannot write here.
    "$release/venv/bin/python" -m compileall -q "$release/binance_funding" || die "the programs do not compile"
    for program in binance_funding_ws_daemon.py funding_api_server.py; do
        (cd "$release" && venv/bin/python "$program" --help >/dev/null) || die "$program does not run"
    done
}

write_settings() {
    # Write every setting with its default as a comment; STATE_FILE has the value of the units.
    {
        echo "# Settings of binance-funding-ws and binance-funding-api. After a change:"
        echo "#   sudo systemctl restart binance-funding-ws"
        echo
        # Skip the first paragraph of .env.example, which is about .env.
        sed -e '1,/^$/d' -e 's/^\([A-Z]\)/#\1/' \
            -e 's|^#*STATE_FILE=.*|#STATE_FILE=/run/binance-funding/funding_state.json|' "$source/.env.example"
    } >"$release/settings"
    # Not world-readable, because the address of a proxy may contain a password. systemd reads the file as root.
    install -m 0640 "$release/settings" "$settings"
    rm "$release/settings"
}

put_into_place() {
    # The unit of the daemon says why it needs a fixed user.
    systemd-sysusers --inline 'u binance-funding - "Binance funding rates" /'
    # The running programs belong to the previous release and may still load its modules or certificates, so keep it.
    switch_to "$release"
    trap - EXIT
    find "$prefix" -mindepth 1 -maxdepth 1 -name 'release.*' ! -path "$release" \
        ! -name "$(readlink "$prefix/previous")" -exec rm -rf {} +
}

switch_to() {
    # Each release brings its own units, because its programs may need other systemd features.
    install -m 0644 "$1/binance-funding-ws.service" "$1/binance-funding-api.service" "$units"
    ln -sfnT "$(readlink "$prefix/current" || basename "$1")" "$prefix/previous"
    ln -sfnT "$(basename "$1")" "$1/current"
    mv -T "$1/current" "$prefix/current"
    if systemd_runs; then systemctl daemon-reload; fi
}

do_install() {
    check_python
    build_release
    kept="kept as it was"
    [ -e "$settings" ] || { write_settings && kept="new, every setting at its default"; }
    put_into_place
    echo "Installed in $prefix; units in $units; settings in $settings ($kept)."
    if systemd_runs && systemctl --quiet is-active binance-funding-ws.service; then
        echo "The running service is still the old one. Next: sudo systemctl restart binance-funding-ws"
    else
        echo "Nothing was started. Next: sudo systemctl enable --now binance-funding-ws"
    fi
}

do_rollback() {
    [ -d "$prefix" ] || die "nothing is installed in $prefix"
    take_turn
    before=$(readlink -e "$prefix/previous") && [ "$before" != "$(readlink -e "$prefix/current")" ] ||
        die "there is no release before this one in $prefix"
    version=$("$before/venv/bin/python" "$before/funding_api_server.py" --version) ||
        die "the release before this one does not run any more"
    switch_to "$before"
    echo "Rolled back to release $version."
    # A stopped service stays stopped. Restart the server by its own name too: a daemon that does not start does not
    # restart it.
    if systemd_runs && [ "$(systemctl is-active binance-funding-ws.service)" != inactive ]; then
        systemctl --no-block restart binance-funding-api.service
        systemctl restart binance-funding-ws.service
        echo "The service was restarted."
    fi
    echo "To go forward again: roll back once more."
}

do_uninstall() {
    if systemd_runs; then systemctl --quiet stop binance-funding-ws.service binance-funding-api.service || true; fi
    systemctl --quiet disable binance-funding-ws.service 2>/dev/null || true
    rm -f "$units/binance-funding-ws.service" "$units/binance-funding-api.service"
    if systemd_runs; then
        systemctl daemon-reload
        systemctl --quiet reset-failed binance-funding-ws.service binance-funding-api.service 2>/dev/null || true
    fi
    rm -rf "$prefix" /run/binance-funding
    if id binance-funding >/dev/null 2>&1; then userdel binance-funding; fi
    echo "Services stopped; programs, units, user and state file removed."
    if [ -e "$settings" ]; then echo "$settings is still there. To remove it as well: sudo rm $settings"; fi
}

[ "$(id -u)" -eq 0 ] || die "needs root: sudo make ${1:-install}"
case ${1:-} in
    install) do_install ;;
    rollback) do_rollback ;;
    uninstall) do_uninstall ;;
    *) die "usage: $0 install|rollback|uninstall" ;;
esac
