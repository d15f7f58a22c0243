#!/bin/sh
# Runs --check as binance-funding-ws.service runs the daemon: as its user, with its settings, behind its restrictions,
# drop-ins included. Whether the service runs or not does not matter, and it notices nothing.
#
#   sudo /opt/binance-funding/current/check
set -eu

release=$(dirname "$(readlink -f "$0")")
unit=$(systemctl cat binance-funding-ws.service)
# Everything that says who runs where; not what starts, restarts and watches over it.
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
