#!/bin/sh
# Runs --check in the way in which binance-funding-ws.service runs the daemon: with its user, settings, restrictions and
# drop-ins. The service may be running or not; it is not disturbed.
#
#   sudo /opt/binance-funding/current/check
set -eu

release=$(dirname "$(readlink -f "$0")")
unit=$(systemctl cat binance-funding-ws.service)
# Take the properties for user, settings and restrictions, but not those that start, restart and supervise the unit.
properties=$(printf '%s\n' "$unit" | awk '
    /^\[/ { in_service = ($0 == "[Service]"); next }
    in_service && /^[A-Z]/ && !/^(Type|Exec(Start|Stop|Reload|Condition)|Restart|Timeout|Watchdog|SyslogIdentifier)/')
set --
while IFS= read -r property; do
    set -- "$@" "--property=$property"
done <<END
$properties
END
exec systemd-run --quiet --wait --pipe --collect "$@" \
    "$release/venv/bin/python" "$release/binance_funding_ws_daemon.py" --check
