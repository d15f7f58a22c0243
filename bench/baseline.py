"""The yardstick of the daemon: the shortest loop that keeps such a file, with nothing that makes it a service.

One connection, no reconnecting, no checks, no REST, no statistics: websocket-client, json, a dictionary, a file.
Settings, from the environment: BINANCE_WS_URLS (one address) and STATE_FILE.
"""

import json
import os
import time

import websocket


def main() -> None:
    """Read messages until the connection ends."""
    path = os.environ["STATE_FILE"]
    records: dict[str, dict[str, object]] = {}
    connection = websocket.create_connection(os.environ["BINANCE_WS_URLS"], skip_utf8_validation=True)
    while message := connection.recv():
        now_s = time.time()
        for row in json.loads(message)["data"]:
            if row["T"] and row["st"] == 1:
                records[row["s"]] = {
                    "fundingRate": float(row["r"]),
                    "markPrice": float(row["p"]),
                    "indexPrice": float(row["i"]),
                    "nextFundingTime": row["T"],
                    "eventTime": row["E"],
                    "updatedAt": now_s,
                    "fundingIntervalHours": 8,
                    "source": "websocket",
                }
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            file.write(json.dumps({"version": 1, "updated_at": now_s, "funding_state": records}))
        os.replace(path + ".tmp", path)


if __name__ == "__main__":
    main()
