"""A subscriber of /funding/stream, which reads events by the letter of the HTML standard and keeps what they say."""

from __future__ import annotations

import json
from typing import Any


class Follower:
    """What a client holds that has followed the events from the beginning of a connection."""

    def __init__(self) -> None:
        self.data: dict[str, dict[str, Any]] = {}
        self.status: dict[str, Any] = {}
        self.events: list[str] = []
        self.comments = 0
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._unread = b""

    def receive(self, received: bytes) -> None:
        """Take in bytes, which may end anywhere."""
        *events, self._unread = (self._unread + received).split(b"\n\n")
        for event in events:
            self._take(event.decode())

    def _take(self, text: str) -> None:
        fields: dict[str, str] = {}
        for line in text.split("\n"):
            name, _, value = line.partition(":")
            assert name not in fields, f"{name} twice in one event: {text[:200]}"
            fields[name] = value.removeprefix(" ")
        if "retry" in fields:
            self.retry_ms = int(fields.pop("retry"))
        self.comments += fields.pop("", None) is not None
        self.last_event_id = fields.pop("id", self.last_event_id)
        if fields:
            assert fields.keys() == {"event", "data"}, text[:200]
            self._apply(fields["event"], json.loads(fields["data"]))

    def _apply(self, event: str, content: dict[str, Any]) -> None:
        if event == "status":
            self.status = content
        elif event == "snapshot":
            assert "snapshot" not in self.events
            self.data = content["data"]
        else:
            assert event == "update", event
            assert "snapshot" in self.events
            assert content["data"] or content["removed"]
            for symbol in content.get("removed", ()):
                self.data.pop(symbol, None)  # it may have come and left in between
            self.data |= content["data"]
        if event != "status":
            assert content["count"] == len(content["data"])
        self.events.append(event)
