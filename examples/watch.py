"""Follows a session live; where the connection or the server is lost, it goes on where it was.

QIGSTORE_TOKEN=qs_… python examples/watch.py ws://127.0.0.1:8720/v1/stream minimal
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

PASSING = {4008, 4408, 4429, 4503, None}  # too slow, busy, or cut off: worth another try


def show(kind: str, data: dict[str, Any]) -> None:
    if kind == "telemetry":
        for part in data["parts"]:
            print(part["session"], "records", part["first_seq"], "to", part["last_seq"], flush=True)
    elif kind == "event":
        print(data["severity"], data["rule"], data["message"], flush=True)


async def watch(url: str, session: str) -> None:
    wishes = {"token": os.environ["QIGSTORE_TOKEN"], "sessions": [session], "rate": 2}
    while True:
        try:
            async with connect(url, max_size=None) as stream:
                await stream.send(json.dumps(wishes))
                async for text in stream:
                    envelope = json.loads(text)
                    show(envelope["kind"], envelope["data"])
                    wishes["after"] = envelope["seq"]
        except ConnectionClosed as closed:
            if closed.rcvd and closed.rcvd.code >= 4000 and closed.rcvd.code not in PASSING:
                raise  # 4401, 4404 and the like: asking again would not help
        except (OSError, InvalidHandshake, TimeoutError):
            print("no server", flush=True)
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(watch(*sys.argv[1:3]))
