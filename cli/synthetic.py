"""Made-up events: a shop, its payments, its visitors and its parcels, in the year 2026."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from random import Random
from typing import Any, Final
from uuid import UUID

_START: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_YEAR_SECONDS: Final = 365 * 24 * 3600
_TOPICS: Final = {"shop.visits": 60, "shop.orders": 20, "payments": 14, "parcels": 6}
"""Topics, and how often each occurs among a hundred events."""
_SOURCES: Final = {
    "shop.visits": ("web", "ios", "android"),
    "shop.orders": ("web", "ios", "android", "call-centre"),
    "payments": ("payments-eu", "payments-us"),
    "parcels": ("warehouse-north", "warehouse-south", "courier"),
}
_PAGES: Final = ("/", "/search", "/cart", "/checkout", "/account", "/help")
_PRODUCTS: Final = ("lamp", "desk", "chair", "rug", "shelf", "mirror", "clock", "vase", "curtain", "stool")
_CURRENCIES: Final = ("EUR", "USD", "GBP", "SEK", "JPY")
_METHODS: Final = ("card", "transfer", "wallet", "invoice")
_PARCEL_STATES: Final = ("packed", "handed over", "in transit", "out for delivery", "delivered", "returned")
_CITIES: Final = ("Berlin", "Göteborg", "Lyon", "Kraków", "Oslo", "São Paulo", "Leeds", "東京")


def synthetic_events(count: int, random: Random) -> Iterator[bytes]:
    """Distinct events in the order of their timestamps; equal for equal states of `random`."""
    topics, weights = list(_TOPICS), list(_TOPICS.values())
    for index in range(count):
        topic = random.choices(topics, weights)[0]
        seconds = (index + random.random()) / count * _YEAR_SECONDS
        occurred = _START + dt.timedelta(milliseconds=int(seconds * 1_000))
        event = {
            "topic": topic,
            "event_id": str(UUID(int=random.getrandbits(128), version=4)),
            "timestamp": occurred.isoformat(timespec="milliseconds"),
            "source": random.choice(_SOURCES[topic]),
            "payload": _payload(topic, random),
        }
        yield json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _payload(topic: str, random: Random) -> dict[str, Any]:
    customer = f"c-{random.randrange(50_000):05}"
    if topic == "shop.visits":
        return {
            "customer": customer if random.random() < 0.4 else None,
            "page": random.choice(_PAGES),
            "milliseconds": int(random.lognormvariate(5.5, 0.6)),
        }
    if topic == "shop.orders":
        lines = [
            {
                "product": random.choice(_PRODUCTS),
                "quantity": random.randint(1, 4),
                "price": round(random.uniform(5, 400), 2),
            }
            for _ in range(random.randint(1, 4))
        ]
        return {"customer": customer, "currency": random.choice(_CURRENCIES), "lines": lines}
    if topic == "payments":
        return {
            "order": f"o-{random.randrange(1_000_000):06}",
            "amount": round(random.lognormvariate(4, 0.8), 2),
            "currency": random.choice(_CURRENCIES),
            "method": random.choice(_METHODS),
            "accepted": random.random() < 0.97,
        }
    return {
        "order": f"o-{random.randrange(1_000_000):06}",
        "state": random.choice(_PARCEL_STATES),
        "city": random.choice(_CITIES),
        "kilograms": round(random.uniform(0.1, 30), 1),
    }
